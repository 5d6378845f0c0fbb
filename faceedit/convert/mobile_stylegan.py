"""MobileStyleGAN's OpenVINO IR (PyPI ``random-face``) to our state dict, without OpenVINO.

The exporter kept the names of unmodified weights and folded demodulation into the others, which
therefore carry generated names. The latter are recognised by the operation they feed.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faceedit.errors import ConversionError
from faceedit.models.layers import Mapping

_DTYPES = {"f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4"}
_MEAN_SAMPLES = 100_000


class _Graph:
    """The layers of one IR file, their inputs, and its constants."""

    def __init__(self, xml: bytes, blob: bytes) -> None:
        root = ElementTree.parse(io.BytesIO(xml)).getroot()
        self.types = {layer.get("id"): layer.get("type") for layer in root.iter("layer")}
        self.names = {layer.get("id"): layer.get("name") for layer in root.iter("layer")}
        self.inputs: dict[str, list[str]] = {i: [] for i in self.types}
        for edge in sorted(root.iter("edge"), key=lambda e: int(e.get("to-port"))):
            self.inputs[edge.get("to-layer")].append(edge.get("from-layer"))
        self.consumers: dict[str, list[str]] = {i: [] for i in self.types}
        for layer, sources in self.inputs.items():
            for source in sources:
                self.consumers[source].append(layer)
        self._data = {
            layer.get("id"): layer.find("data").attrib
            for layer in root.iter("layer")
            if layer.get("type") == "Const"
        }
        self._blob = blob

    def ids(self, kind: str) -> list[str]:
        """Ids of the layers of one type, in the file's (topological) order."""
        return [i for i, t in self.types.items() if t == kind]

    def constant(self, layer: str) -> Tensor | None:
        """The value of a constant, or None for any other layer."""
        if layer not in self._data:
            return None
        data = self._data[layer]
        start, size = int(data["offset"]), int(data["size"])
        if start + size > len(self._blob):
            raise ConversionError(
                f"constant {self.names[layer]!r} ends at byte {start + size} but the .bin file has "
                f"{len(self._blob)}: it is truncated; take the wheel again"
            )
        shape = [int(n) for n in data["shape"].split(",") if n.strip()]
        array = np.frombuffer(self._blob, _DTYPES[data["element_type"]], offset=start, count=size // _itemsize(data))
        return torch.from_numpy(array.reshape(shape).copy())

    def named(self, name: str) -> Tensor:
        for layer, other in self.names.items():
            if other == name:
                return self.constant(layer)
        raise ConversionError(f"the file has no constant {name!r}: it is not MobileStyleGAN's synthesis network")

    def operand(self, layer: str) -> Tensor:
        """The constant among the inputs of ``layer``."""
        for source in self.inputs[layer]:
            value = self.constant(source)
            if value is not None:
                return value
        raise ConversionError(f"layer {self.names[layer]!r} has no constant input: unexpected graph")

    def follow(self, layer: str, kind: str) -> str:
        """The consumer of ``layer`` that is of type ``kind``."""
        for consumer in self.consumers[layer]:
            if self.types[consumer] == kind:
                return consumer
        raise ConversionError(f"no {kind} follows layer {self.names[layer]!r}: unexpected graph")


def _itemsize(data: dict[str, str]) -> int:
    return np.dtype(_DTYPES[data["element_type"]]).itemsize


def convert(source: str | Path) -> dict[str, Tensor]:
    """Read the networks from the wheel or from a folder holding its ``data`` files.

    Args:
        source: The ``random_face-*.whl`` file, or a folder with ``MappingNetwork.{xml,bin}`` and
            ``SynthesisNetwork.{xml,bin}``.

    Returns:
        float32 state dict of :class:`faceedit.models.mobile_stylegan.MobileStyleGAN`, without the
        preview head, which is ours and trained by ``faceedit.train preview``.

    Raises:
        ConversionError: A file is missing, truncated or not the expected network.
    """
    try:
        state = _mapping_state(_Graph(*_read(source, "MappingNetwork")))
        state |= _synthesis_state(_Graph(*_read(source, "SynthesisNetwork")))
        state["mean_latent"] = _mean_latent(state)
    except ConversionError:
        raise
    except Exception as error:  # another network's graph can trip the reader up in any way
        raise ConversionError(f"{source} does not hold MobileStyleGAN as random-face has it: {error!r}") from error
    return state


def _read(source: str | Path, network: str) -> tuple[bytes, bytes]:
    source = Path(source)
    names = [f"{network}.xml", f"{network}.bin"]
    try:
        if source.is_dir():
            return tuple((source / name).read_bytes() for name in names)
        with zipfile.ZipFile(source) as wheel:
            return tuple(wheel.read(f"random_face/data/{name}") for name in names)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{source} does not give {' and '.join(names)} ({error}); pass the random-face wheel "
            "(pip download --no-deps random-face==2021.7.21.1) or the folder of its data files"
        ) from error


def _mapping_state(graph: _Graph) -> dict[str, Tensor]:
    state = {}
    for i, layer in enumerate(graph.ids("MatMul")):
        reshape = next(
            j for j in graph.inputs[graph.follow(layer, "Add")] if graph.types[j] == "Reshape"
        )
        state[f"mapping.layers.{i}.weight"] = graph.operand(layer)
        state[f"mapping.layers.{i}.bias"] = graph.constant(graph.inputs[reshape][0])
    return state


def _bands_first(x: Tensor) -> Tensor:
    """Reorder the channels of a Haar transform, ``x``'s first dimension.

    The file has the low-pass channels, then three details for each channel; ours has the low-pass
    channels, then all of one detail after the other, which is faster to take apart.
    """
    n = len(x) // 4
    details = x[n:].unflatten(0, (n, 3)).transpose(0, 1).flatten(0, 1)
    return torch.cat((x[:n], details))


def _style(graph: _Graph, name: str, key: str, fan_in: int) -> dict[str, Tensor]:
    """A style's affine layer with the network's constant scale, 1/sqrt(fan_in), folded in."""
    return {
        f"{key}.weight": graph.named(f"{name}.modulation.weight") * fan_in**-0.5,
        f"{key}.bias": graph.named(f"{name}.modulation.bias").flatten() * fan_in**-0.5,
    }


def _synthesis_state(graph: _Graph) -> dict[str, Tensor]:
    state = {"constant": graph.named("m.input.input")}
    first, *pointwise, head = graph.ids("Convolution")
    keys = ["first"] + [f"levels.{i // 2}.conv{i % 2 + 1}" for i in range(len(pointwise))]
    for key, layer in zip(keys, [first, *pointwise], strict=True):
        name = "m.conv1" if key == "first" else key.replace("levels.", "m.layers.")
        weight = graph.operand(layer)
        state[f"{key}.weight"] = weight
        state[f"{key}.noise"] = graph.operand(graph.follow(layer, "Add"))[0, 0]
        state[f"{key}.bias"] = graph.named(f"{name}.bias").flatten()
        state |= _style(graph, f"{name}.conv", f"{key}.style", 9 * weight.shape[1])
        if key != "first":
            state[f"{key}.depthwise"] = graph.named(f"{name}.conv.weight_dw").flatten(1, 2)
    n_levels = len(pointwise) // 2
    for i in range(n_levels):
        state |= _style(graph, f"m.layers.{i}.up", f"levels.{i}.up", 1)
        # What a level's transform reads: its own scales and the channels of the layer before.
        before = f"levels.{i - 1}.conv2" if i else "first"
        for key in (f"levels.{i}.up.weight", f"levels.{i}.up.bias", f"{before}.weight", f"{before}.bias"):
            state[key] = _bands_first(state[key])
    weight = graph.operand(head)
    name = f"m.layers.{n_levels - 1}.to_img"
    state["head.weight"] = _bands_first(weight)
    state["head.bias"] = _bands_first(graph.named(f"{name}.bias").flatten())
    return state | _style(graph, f"{name}.conv", "head.style", weight.shape[1])


def _mean_latent(state: dict[str, Tensor]) -> Tensor:
    """Mean of W over fixed random draws."""
    mapping = Mapping()
    mapping.load_state_dict({k.removeprefix("mapping."): v for k, v in state.items() if k.startswith("mapping.")})
    return mapping.mean(_MEAN_SAMPLES)
