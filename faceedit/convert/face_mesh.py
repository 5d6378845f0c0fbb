"""MediaPipe's face mesh (PyPI ``mediapipe``) to our state dict, without MediaPipe or TensorFlow.

The layers are `faceedit.models.face_mesh.FaceMesh`, and their names in the file are numbered in order.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from faceedit.convert.tflite import convolution, read_mediapipe
from faceedit.models.face_mesh import N_POINTS, FaceMesh

_FILE = "mediapipe/modules/face_landmark/face_landmark.tflite"


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
    return read_mediapipe(source, _FILE, "the face mesh", _state)


def _state(constants: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}

    def put(key: str, name: str) -> None:
        state.update({f"{key}.{part}": value for part, value in convolution(constants, name).items()})

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
