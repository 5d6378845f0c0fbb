"""MediaPipe's face mesh (PyPI ``mediapipe``) to our state dict, without MediaPipe or TensorFlow.

A .tflite file is a FlatBuffer. Only its constants are read here; the layers are
`faceedit.models.face_mesh.FaceMesh`, and their names in the file are numbered in order.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faceedit.errors import ConversionError
from faceedit.models.face_mesh import N_POINTS, FaceMesh

_FILE = "mediapipe/modules/face_landmark/face_landmark.tflite"
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


def convert(source: str | Path) -> dict[str, Tensor]:
    """Read the network from the wheel, or from the .tflite file in it.

    Args:
        source: The ``mediapipe-0.10.21-*.whl`` file, or its ``face_landmark.tflite``.

    Returns:
        float32 state dict of `faceedit.models.face_mesh.FaceMesh`: the layers that lead to
        the points, without the points' depths.

    Raises:
        ConversionError: A file is missing, truncated or not the expected network.
    """
    source = Path(source)
    try:
        if source.suffix == ".tflite":
            data = source.read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                data = wheel.read(_FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConversionError(
            f"{source} does not give {_FILE} ({error}); pass the wheel that pip download --no-deps "
            "mediapipe==0.10.21 takes, or that file of it"
        ) from error
    try:
        return _state(_constants(data))
    except Exception as error:  # another file can trip the reader up in any way
        raise ConversionError(f"{source} does not hold the face mesh as mediapipe 0.10.21 has it: {error!r}") from error


def _state(constants: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}

    def put(key: str, name: str) -> None:
        """A convolution: out x height x width x in there, out x in x height x width here."""
        kernel = constants[f"{name}/Kernel"]
        depthwise = name.startswith("depthwise")
        state[f"{key}.weight"] = kernel.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)).contiguous()
        state[f"{key}.bias"] = constants[f"{name}/Bias"]

    def put_slope(key: str, number: int) -> None:
        state[f"{key}.weight"] = constants[f"p_re_lu_{number}/Alpha"].flatten()

    # Every dense convolution is followed by the PReLU of its number; one of them, between the last
    # two blocks, stands alone and shifts the numbers of the depthwise ones by one.
    put("stem.0", "conv2d_1")
    put_slope("stem.1", 1)
    n_blocks = len(FaceMesh.blocks)
    for i in range(n_blocks):
        last = i == n_blocks - 1
        put(f"body.{i}.depthwise", f"depthwise_conv2d_{i + 1}")
        put(f"body.{i}.pointwise", f"conv2d_{i + 2 + last}")
        put_slope(f"body.{i}.slope", i + 2 + last)
    put("narrow.0", f"conv2d_{n_blocks + 1}")
    put_slope("narrow.1", n_blocks + 1)
    put("points", f"conv2d_{n_blocks + 3}")
    for key in ("points.weight", "points.bias"):
        state[key] = state[key].unflatten(0, (N_POINTS, 3))[:, :2].flatten(0, 1).clone()
    FaceMesh().load_state_dict(state)
    return state
