"""Generators of NVIDIA's ``stylegan2-ada-pytorch`` and of ``stylegan3``'s StyleGAN2.

``generator(tensors, conv_clamp)`` takes the parameters and buffers of a pickle's ``G_ema`` by their
dotted names, already read, and ``conv_clamp`` from its ``synthesis_kwargs`` (None where the pickle
has none; stylegan3's default is 256).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from faceedit.convert.builders import Record
from faceedit.convert.stylegan2 import Source, fill, highest, size_along
from faceedit.errors import ConversionError
from faceedit.models.stylegan2 import StyleGAN2

_LAYOUT = "NVIDIA's stylegan2-ada-pytorch"
_MAPPING_RATE = 0.01
_MAX_DEPTH, _MAX_MODULES = 8, 10_000  # of a forged pickle's modules, which may contain themselves


def tensors(network: Record) -> tuple[dict[str, Tensor], float | None]:
    """What :func:`generator` takes, from a network as `faceedit.convert.unpickle` gives it.

    Raises:
        ConversionError: It is no module, or holds something other than modules and tensors.
    """
    found: dict[str, Tensor] = {}
    clamps: set[float | None] = set()
    waiting: list[tuple[str, Any]] = [("", network)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            break
        name, module = waiting.pop()
        state = module.state if isinstance(module, Record) else {}
        parts = [state.get(f"_{kind}") for kind in ("modules", "parameters", "buffers")]
        if not all(isinstance(part, dict) for part in parts) or name.count(".") > _MAX_DEPTH:
            raise ConversionError(f"{name.rstrip('.') or 'G_ema'} is no module of NVIDIA's networks")
        modules, *own = parts
        waiting += [(f"{name}{key}.", value) for key, value in modules.items() if value is not None]
        for key, value in ((key, value) for part in own for key, value in part.items() if value is not None):
            if not isinstance(value, Tensor):
                raise ConversionError(f"{name}{key} is a {type(value).__name__} where a tensor belongs")
            found[f"{name}{key}"] = value
        clamp = state.get("conv_clamp", ...)
        if clamp is None or type(clamp) in (int, float) and clamp > 0:
            clamps.add(clamp)
    else:
        raise ConversionError("it has modules without end")
    if len(clamps) > 1:
        raise ConversionError(f"its layers clamp at different values: {', '.join(map(str, clamps))}")
    return found, clamps.pop() if clamps else None


def generator(tensors: Mapping[str, Tensor], conv_clamp: float | None = None) -> StyleGAN2:
    """Build the generator; its size, channels and mapping depth follow from the tensors.

    Only unconditional RGB networks of the "skip" architecture, which is the default, are taken: in
    others a tensor is left over or missing. The original adds the demodulation's 1e-8 to a sum that
    is ``9 n_in`` times ours; the two differ by less than float32 resolves.

    Args:
        tensors: Names such as ``mapping.fc0.weight`` and ``synthesis.b8.conv0.affine.bias``.
        conv_clamp: What the original clamps its layers' outputs to.

    Returns:
        In float32, frozen, on the CPU.

    Raises:
        CheckpointError: A tensor is missing, left over or mis-shaped, or a filter is another one.
    """
    depth = highest(tensors, r"mapping\.fc(\d+)\.", _LAYOUT) + 1
    size = highest(tensors, r"synthesis\.b(\d+)\.", _LAYOUT)
    style_dim = size_along(tensors, [(f"mapping.fc{i}.bias", 0) for i in range(depth)], _LAYOUT)
    sides = [4 * 2**i for i in range(max(2, size.bit_length() - 2))]
    channels = []
    for side in sides:
        block = f"synthesis.b{side}"
        first = f"{block}.conv0.bias" if side > 4 else f"{block}.const"
        places = [(first, 0), (f"{block}.conv1.bias", 0), (f"{block}.torgb.weight", 1)]
        channels.append(size_along(tensors, places, _LAYOUT))
    with torch.device("meta"):
        made = StyleGAN2(
            sides[-1], style_dim=style_dim, mapping_layers=depth, channels=channels, conv_clamp=conv_clamp
        )
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}

    sources = {
        "constant": Source("synthesis.b4.const", shapes["constant"][1:]),
        "mean_latent": Source("mapping.w_avg", (style_dim,)),
    }
    filters = {}
    for i in range(depth):
        for part, scale in (("weight", _MAPPING_RATE * style_dim**-0.5), ("bias", _MAPPING_RATE)):
            key = f"mapping.layers.{i}.{part}"
            sources[key] = Source(f"mapping.fc{i}.{part}", shapes[key], scale)
    for level, (side, width) in enumerate(zip(sides, channels, strict=True)):
        block = f"synthesis.b{side}"
        filters[f"{block}.resample_filter"] = 1.0
        convs = {"first": f"{block}.conv1"}
        if level:
            convs = {f"levels.{level - 1}.conv{i + 1}": f"{block}.conv{i}" for i in (0, 1)}
        for key, name in convs.items():
            shape = shapes[f"{key}.weight"]
            sources |= {
                f"{key}.weight": Source(f"{name}.weight", shape, (9 * shape[1]) ** -0.5),
                f"{key}.style.weight": Source(f"{name}.affine.weight", (shape[1], style_dim), style_dim**-0.5),
                f"{key}.style.bias": Source(f"{name}.affine.bias", (shape[1],)),
                f"{key}.bias": Source(f"{name}.bias", (shape[0],)),
                f"{key}.noise_strength": Source(f"{name}.noise_strength", ()),
                f"{key}.noise": Source(f"{name}.noise_const", (side, side)),
            }
            filters[f"{name}.resample_filter"] = 1.0
        key, name = f"heads.{level}", f"{block}.torgb"
        sources |= {
            f"{key}.weight": Source(f"{name}.weight", (3, width, 1, 1), width**-0.5),
            f"{key}.style.weight": Source(f"{name}.affine.weight", (width, style_dim), style_dim**-0.5),
            f"{key}.style.bias": Source(f"{name}.affine.bias", (width,)),
            f"{key}.bias": Source(f"{name}.bias", (3,)),
        }
    return fill(made, sources, filters, tensors, _LAYOUT)
