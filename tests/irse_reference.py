"""IR-SE networks, pSp, e4e and ArcFace once more: the formulas in NumPy, float64, and the published names.

Shares no code with `faceedit.models`, which is tested against it.
"""

from __future__ import annotations

import numpy as np
import torch

WIDTHS, UNITS = (64, 128, 256, 512), (3, 4, 14, 3)

# Sizes at which whole networks take milliseconds.
TINY = {"widths": (16, 16, 32, 48), "units": (1, 2, 1, 2)}
TINY_ENCODER = {"n_styles": 9, "style_dim": 24, "input_size": 64, **TINY}


# The published layouts, name -> shape; () for counters


def norm(name, width):
    per_channel = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return per_channel | {f"{name}.num_batches_tracked": ()}


def body_layout(widths=WIDTHS, units=UNITS):
    layout = {"input_layer.0.weight": (widths[0], 3, 3, 3)}
    layout |= norm("input_layer.1", widths[0]) | {"input_layer.2.weight": (widths[0],)}
    number, before = 0, widths[0]
    for width, count in zip(widths, units, strict=True):
        for _ in range(count):
            block = f"body.{number}"
            if before != width:
                layout |= {f"{block}.shortcut_layer.0.weight": (width, before, 1, 1)}
                layout |= norm(f"{block}.shortcut_layer.1", width)
            layout |= norm(f"{block}.res_layer.0", before)
            layout |= {f"{block}.res_layer.1.weight": (width, before, 3, 3)}
            layout |= {f"{block}.res_layer.2.weight": (width,)}
            layout |= {f"{block}.res_layer.3.weight": (width, width, 3, 3)}
            layout |= norm(f"{block}.res_layer.4", width)
            layout |= {f"{block}.res_layer.5.fc1.weight": (width // 16, width, 1, 1)}
            layout |= {f"{block}.res_layer.5.fc2.weight": (width, width // 16, 1, 1)}
            number, before = number + 1, width
    return layout


def encoder_layout(n_styles=18, style_dim=512, input_size=256, widths=WIDTHS, units=UNITS):
    layout = body_layout(widths, units)
    for style in range(n_styles):
        size = input_size // 16 if style < 3 else input_size // 8 if style < 7 else input_size // 4
        halvings = size.bit_length() - 1
        for i in range(halvings):
            n_in = widths[3] if i == 0 else style_dim
            layout[f"styles.{style}.convs.{2 * i}.weight"] = (style_dim, n_in, 3, 3)
            layout[f"styles.{style}.convs.{2 * i}.bias"] = (style_dim,)
        layout[f"styles.{style}.linear.weight"] = (style_dim, style_dim)
        layout[f"styles.{style}.linear.bias"] = (style_dim,)
    for name, n_in in (("latlayer1", widths[2]), ("latlayer2", widths[1])):
        layout |= {f"{name}.weight": (widths[3], n_in, 1, 1), f"{name}.bias": (widths[3],)}
    return layout


def arcface_layout(widths=WIDTHS, units=UNITS, size=112, dim=512):
    layout = body_layout(widths, units) | norm("output_layer.0", widths[3])
    layout |= {"output_layer.3.weight": (dim, widths[3] * (size // 16) ** 2), "output_layer.3.bias": (dim,)}
    return layout | norm("output_layer.4", dim)


def random_tensors(layout, seed=0):
    """float32 values with which signals neither fade nor grow; the same with every NumPy and PyTorch."""
    random = np.random.RandomState(seed)
    tensors = {}
    for name, shape in layout.items():
        if not shape:
            tensors[name] = torch.tensor(7)
            continue
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            value = random.uniform(0.3, 1.7, shape)
        elif len(shape) == 1:
            value = 0.3 * random.randn(*shape)
        elif ".linear." in name:
            value = random.randn(*shape)  # the network divides it
        else:
            value = random.randn(*shape) * np.prod(shape[1:]) ** -0.5
        tensors[name] = torch.from_numpy(np.asarray(value, np.float32))
    return tensors


# The formulas; arrays (B, C, H, W), tensors by name


def convolve(x, weight, bias=None, stride=1, padding=0):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    y = np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], weight, optimize=True)
    return y if bias is None else y + bias[:, None, None]


def normalise(x, t, name):
    """Batch norm with its running statistics, eps 1e-5, of (B, C, ...)."""
    mean, var, scale, shift = (
        t[f"{name}.{part}"].reshape(-1, *[1] * (x.ndim - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + shift


def prelu(x, slope):
    return np.where(x > 0, x, x * slope[:, None, None])


def irse_block(x, t, name, stride):
    y = convolve(normalise(x, t, f"{name}.res_layer.0"), t[f"{name}.res_layer.1.weight"], padding=1)
    y = prelu(y, t[f"{name}.res_layer.2.weight"])
    y = convolve(y, t[f"{name}.res_layer.3.weight"], stride=stride, padding=1)
    y = normalise(y, t, f"{name}.res_layer.4")
    squeezed = y.mean((2, 3), keepdims=True)
    hidden = np.maximum(convolve(squeezed, t[f"{name}.res_layer.5.fc1.weight"]), 0)
    y = y / (1 + np.exp(-convolve(hidden, t[f"{name}.res_layer.5.fc2.weight"])))
    if f"{name}.shortcut_layer.0.weight" not in t:
        return y + x[:, :, ::stride, ::stride]
    skip = convolve(x, t[f"{name}.shortcut_layer.0.weight"], stride=stride)
    return y + normalise(skip, t, f"{name}.shortcut_layer.1")


def body(x, t, units):
    """The map after each stage."""
    x = convolve(x, t["input_layer.0.weight"], padding=1)
    x = prelu(normalise(x, t, "input_layer.1"), t["input_layer.2.weight"])
    maps, number = [], 0
    for count in units:
        for i in range(count):
            x = irse_block(x, t, f"body.{number}", 1 if i else 2)
            number += 1
        maps.append(x)
    return maps


def enlarge(x):
    """Twice the size, bilinear, corners on corners."""

    def along(x, axis):
        n = x.shape[axis]
        place = np.arange(2 * n) * (n - 1) / (2 * n - 1)
        low = np.minimum(place.astype(int), n - 2)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        return x.take(low, axis) * (1 - part) + x.take(low + 1, axis) * part

    return along(along(x, 2), 3)


def pyramid(maps, t):
    """The maps that rows 0-2, 3-6 and 7 on are read from."""
    coarse = maps[3]
    middle = enlarge(coarse) + convolve(maps[2], t["latlayer1.weight"], t["latlayer1.bias"])
    fine = enlarge(middle) + convolve(maps[1], t["latlayer2.weight"], t["latlayer2.bias"])
    return coarse, middle, fine


def row(x, t, style):
    for i in range(x.shape[-1].bit_length() - 1):
        name = f"styles.{style}.convs.{2 * i}"
        x = convolve(x, t[f"{name}.weight"], t[f"{name}.bias"], stride=2, padding=1)
        x = np.where(x > 0, x, 0.01 * x)
    x, weight = x[:, :, 0, 0], t[f"styles.{style}.linear.weight"]
    return x @ weight.T / np.sqrt(weight.shape[1]) + t[f"styles.{style}.linear.bias"]


def encode(x, t, kind, n_styles, units):
    """Codes before the mean is added, and the body's maps."""
    maps = body(x, t, units)
    levels = pyramid(maps, t)
    rows = [row(levels[0 if i < 3 else 1 if i < 7 else 2], t, i) for i in range(n_styles)]
    if kind == "e4e":
        rows = [rows[0], *(rows[0] + offset for offset in rows[1:])]
    return np.stack(rows, 1), maps


def arcface(x, t, units):
    x = normalise(body(x, t, units)[-1], t, "output_layer.0").reshape(len(x), -1)
    x = x @ t["output_layer.3.weight"].T + t["output_layer.3.bias"]
    x = normalise(x, t, "output_layer.4")
    return x / np.sqrt((x**2).sum(1, keepdims=True))


def double(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def pictures(n=2, size=64, seed=1):
    """Smooth pictures ``(n, 3, size, size)`` in [-1, 1], float32."""
    random = np.random.RandomState(seed)
    waves = random.uniform(-0.2, 0.2, (n, 3, 2, 3))
    y, x = np.mgrid[:size, :size]
    down, across = waves[..., 0, :, None, None], waves[..., 1, :, None, None]
    parts = np.sin(3 * (down * y + across * x) + 2 * waves[..., :1, 0, None, None])
    return torch.from_numpy(parts.mean(2).astype(np.float32))
