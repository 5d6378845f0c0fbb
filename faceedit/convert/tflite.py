"""The constants of a .tflite file, without TensorFlow. Such a file is a FlatBuffer; its operators are not read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faceedit.errors import ConversionError

_DTYPES = {0: "<f4", 1: "<f2"}  # the types of TensorFlow Lite that hold weights


class _Table:
    """A table of a FlatBuffer: fields that are found by their number in the schema."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - struct.unpack_from("<i", data, place)[0]

    def _field(self, number: int) -> int:
        """Where a field is, or 0 where it has its default."""
        if 4 + 2 * number >= struct.unpack_from("<H", self._data, self._fields)[0]:
            return 0
        offset = struct.unpack_from("<H", self._data, self._fields + 4 + 2 * number)[0]
        return self._place + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        place = self._field(field)
        return struct.unpack_from("<" + kind, self._data, place)[0] if place else 0

    def array(self, field: int, dtype: str) -> np.ndarray:
        """A vector of numbers; also a string, whose numbers are its bytes."""
        place = self._field(field)
        if not place:
            return np.empty(0, dtype)
        place += struct.unpack_from("<I", self._data, place)[0]
        count = struct.unpack_from("<I", self._data, place)[0]
        return np.frombuffer(self._data, dtype, count, place + 4)

    def tables(self, field: int) -> list[_Table]:
        start = self._field(field)
        start += struct.unpack_from("<I", self._data, start)[0] + 4
        offsets = self.array(field, "<u4")
        return [_Table(self._data, start + 4 * i + int(o)) for i, o in enumerate(offsets)]


def _constants(data: bytes) -> dict[str, Tensor]:
    """The named constants of a .tflite file, float32."""
    model = _Table(data, struct.unpack_from("<I", data)[0])
    buffers = model.tables(4)
    constants = {}
    for tensor in model.tables(2)[0].tables(0):
        values = buffers[tensor.number(2, "I")].array(0, "u1")
        kind = tensor.number(1, "b")
        if len(values) and kind in _DTYPES:
            name = tensor.array(3, "u1").tobytes().decode()
            array = values.view(_DTYPES[kind]).reshape(tensor.array(0, "<i4"))
            constants[name] = torch.from_numpy(array.astype(np.float32))
    return constants


def read_mediapipe(
    source: str | Path, file: str, what: str, state: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """A network of MediaPipe's wheel as a state dict of ours.

    Args:
        source: The ``mediapipe-0.10.21-*.whl`` file, or the .tflite file of it.
        file: That file's name in the wheel.
        what: The network, in words, for messages.
        state: Constants by name to the state dict.

    Raises:
        ConversionError: A file is missing, truncated or not the expected network.
    """
    source = Path(source)
    try:
        if source.suffix == ".tflite":
            data = source.read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                data = wheel.read(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{source} does not give {file} ({error}); pass the wheel that pip download --no-deps "
            "mediapipe==0.10.21 takes, or that file of it"
        ) from error
    try:
        return state(_constants(data))
    except Exception as error:  # another file can trip the reader up in any way
        raise ConversionError(f"{source} does not hold {what} as mediapipe 0.10.21 has it: {error!r}") from error


def convolution(constants: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weight and bias of a layer: out x height x width x in there, out x in x height x width here."""
    kernel = constants[f"{name}/Kernel"]
    # Depthwise kernels have their channels where the others have their inputs.
    order = (3, 0, 1, 2) if name.startswith("depthwise") else (0, 3, 1, 2)
    return {"weight": kernel.permute(order).contiguous(), "bias": constants[f"{name}/Bias"]}
