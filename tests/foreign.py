"""Tiny networks written in the layouts of others, tensor by tensor, from their formulas and names."""

from __future__ import annotations

import pickle
import sys
from contextlib import contextmanager
from types import ModuleType

import torch

from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.models.stylegan2 import StyleGAN2

SIZE, ROWS, DIM, CHANNELS, DEPTH = 32, 8, 24, (16, 16, 12, 8), 2
WIDTHS, UNITS = (16, 32, 48, 64), (1, 2, 1, 1)
BLUR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def generator(seed=0):
    """A generator whose pictures lie in the usual range."""
    torch.manual_seed(seed)
    made = StyleGAN2(SIZE, style_dim=DIM, mapping_layers=DEPTH, channels=CHANNELS)
    for conv in (made.first, *(c for level in made.levels for c in (level.conv1, level.conv2))):
        conv.noise_strength.fill_(0.05)
        conv.bias.normal_(std=0.1)
    for head in made.heads:
        head.weight.mul_(0.15)
        head.bias.normal_(std=0.1)
    made.mean_latent.copy_(made.mapping.mean(20_000))
    return made.eval()


def encoder(kind="psp", seed=1):
    """An encoder for it, whose codes are not all alike."""
    torch.manual_seed(seed)
    made = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}[kind](ROWS, DIM, 32, WIDTHS, UNITS)
    return made.eval()


def styled_convs(made):
    """The styled convolutions in the order of the rows of W+ that they read, with their number."""
    return list(enumerate([made.first, *(c for level in made.levels for c in (level.conv1, level.conv2))]))


def rosinality(made):
    """The state dict of rosinality's Generator: equalised weights, batch dimensions, filters."""
    state = {"input.input": made.constant}
    for i, layer in enumerate(made.mapping.layers):
        state[f"style.{i + 1}.weight"] = layer.weight * 100 * DIM**0.5
        state[f"style.{i + 1}.bias"] = layer.bias * 100
    for number, conv in styled_convs(made):
        name = "conv1" if number == 0 else f"convs.{number - 1}"
        n_in = conv.weight.shape[1]
        state |= {
            f"{name}.conv.weight": conv.weight[None] * (9 * n_in) ** 0.5,
            f"{name}.conv.modulation.weight": conv.style.weight * DIM**0.5,
            f"{name}.conv.modulation.bias": conv.style.bias,
            f"{name}.noise.weight": conv.noise_strength[None],
            f"{name}.activate.bias": conv.bias,
            f"noises.noise_{number}": conv.noise[None, None],
        }
        if number % 2:
            state[f"{name}.conv.blur.kernel"] = BLUR * 4
    for level, head in enumerate(made.heads):
        name = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
        n_in = head.weight.shape[1]
        state |= {
            f"{name}.bias": head.bias[None, :, None, None],
            f"{name}.conv.weight": head.weight[None] * n_in**0.5,
            f"{name}.conv.modulation.weight": head.style.weight * DIM**0.5,
            f"{name}.conv.modulation.bias": head.style.bias,
        }
        if level:
            state[f"{name}.upsample.kernel"] = BLUR * 4
    return {name: value.detach().clone() for name, value in state.items()}


def psp(made, encodes, encoder_type="GradualStyleEncoder"):
    """A checkpoint as pSp and e4e save it."""
    state = {f"decoder.{name}": value for name, value in rosinality(made).items()}
    own = encodes.state_dict().items()
    state |= {f"encoder.{name}": value for name, value in own if not name.startswith("latent_")}
    return {
        "state_dict": state,
        "latent_avg": made.mean_latent.expand(ROWS, -1).clone(),
        "opts": {"encoder_type": encoder_type, "stylegan_size": SIZE, "device": "cuda:0"},
    }


# NVIDIA's pickles


class Persistent:
    """Pickles as NVIDIA's persistent classes do: with the class's source, and the state as a dict."""

    def __init__(self, class_name, parameters=(), buffers=(), modules=(), source="raise SystemExit", **attributes):
        self.class_name, self.source = class_name, source
        self.state = {
            "training": False,
            "_parameters": {name: torch.nn.Parameter(value) for name, value in dict(parameters).items()},
            "_buffers": dict(buffers),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": torch.nn.Module()._backward_hooks,
            "_modules": dict(modules),
            **attributes,
        }

    def __reduce__(self):
        meta = {
            "type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name, "state": self.state,
        }  # fmt: skip
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextmanager
def nvidia_modules():
    """The modules that a pickler looks up; gone again before anything is read."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("never called")

    class EasyDict(dict):
        pass

    for thing, module in ((_reconstruct_persistent_obj, persistence), (EasyDict, util)):
        thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
        setattr(module, thing.__name__, thing)
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    sys.modules.update(zip(names, (ModuleType("torch_utils"), persistence, ModuleType("dnnlib"), util)))
    try:
        yield EasyDict
    finally:
        for name in names:
            del sys.modules[name]


def nvidia(made, path, source="raise SystemExit", clamp=None):
    """Write a pickle as stylegan2-ada-pytorch does."""
    convs = dict(styled_convs(made))

    def layer(conv, up):
        n_in = conv.weight.shape[1]
        affine = Persistent(
            "FullyConnectedLayer", {"weight": conv.style.weight * DIM**0.5, "bias": conv.style.bias}, source=source
        )
        return Persistent(
            "SynthesisLayer",
            {"weight": conv.weight * (9 * n_in) ** 0.5, "noise_strength": conv.noise_strength, "bias": conv.bias},
            {"resample_filter": BLUR, "noise_const": conv.noise},
            {"affine": affine}, source, conv_clamp=clamp, up=1 + up,
        )  # fmt: skip

    blocks = {}
    for level, side in enumerate(made.level_sizes):
        head = made.heads[level]
        affine = Persistent("FullyConnectedLayer", {"weight": head.style.weight * DIM**0.5, "bias": head.style.bias})
        weight = head.weight * head.weight.shape[1] ** 0.5
        modules = {
            "torgb": Persistent("ToRGBLayer", {"weight": weight, "bias": head.bias}, {}, {"affine": affine}, conv_clamp=clamp),
            "conv1": layer(convs[2 * level], False),
        }
        if level:
            modules["conv0"] = layer(convs[2 * level - 1], True)
        parameters = {} if level else {"const": made.constant[0]}
        blocks[f"b{side}"] = Persistent("SynthesisBlock", parameters, {"resample_filter": BLUR}, modules)
    fully = {
        f"fc{i}": Persistent(
            "FullyConnectedLayer", {"weight": fc.weight * 100 * DIM**0.5, "bias": fc.bias * 100}, weight_gain=0.01
        )
        for i, fc in enumerate(made.mapping.layers)
    }
    mapping = Persistent("MappingNetwork", {}, {"w_avg": made.mean_latent}, fully)
    synthesis = Persistent("SynthesisNetwork", {}, {}, blocks)
    with nvidia_modules() as easy_dict, torch.no_grad():
        network = Persistent("Generator", {}, {}, {"synthesis": synthesis, "mapping": mapping}, source)
        content = {"G": network, "D": None, "G_ema": network, "training_set_kwargs": easy_dict(resolution=SIZE)}
        path.write_bytes(pickle.dumps(content))
    return path
