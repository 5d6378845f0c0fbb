"""The face mesh's converter: a .tflite file written here and read back, and the real one."""

import importlib.util
import os
import zipfile

import numpy as np
import pytest
import torch
from tflite_file import check_reading, tflite

from faceedit.convert.face_mesh import convert
from faceedit.errors import ConversionError
from faceedit.models.face_mesh import N_POINTS, FaceMesh

WHEEL = os.environ.get("FACEEDIT_MEDIAPIPE_WHEEL")
FILE = "mediapipe/modules/face_landmark/face_landmark.tflite"


def foreign(state):
    """The constants as the file has them: its names and orders, depths among the points."""
    constants = {}

    def put(key, name, depthwise=False):
        weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
        constants[f"{name}/Kernel"] = weight.permute((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
        constants[f"{name}/Bias"] = bias

    dense = ["stem.0", *[f"body.{i}.pointwise" for i in range(17)], "narrow.0", "body.17.pointwise"]
    slopes = ["stem.1", *[f"body.{i}.slope" for i in range(17)], "narrow.1", "body.17.slope"]
    for number, (layer, slope) in enumerate(zip(dense, slopes, strict=True), 1):
        put(layer, f"conv2d_{number}")
        constants[f"p_re_lu_{number}/Alpha"] = state[f"{slope}.weight"][None, None]
    for i in range(18):
        put(f"body.{i}.depthwise", f"depthwise_conv2d_{i + 1}", depthwise=True)
    put("points", "conv2d_21")
    for name in ("conv2d_21/Kernel", "conv2d_21/Bias"):
        rows = constants[name].unflatten(0, (N_POINTS, 2))
        constants[name] = torch.cat((rows, torch.full_like(rows[:, :1], 7.0)), 1).flatten(0, 1)
    return constants


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return {k: torch.randn_like(v).half().float() for k, v in FaceMesh().state_dict().items()}


def test_a_file_written_in_the_foreign_layout_is_read_back(state, tmp_path):
    check_reading(convert, foreign(state), state, FILE, tmp_path)


def test_another_network_is_refused(state, tmp_path):
    path = tmp_path / "other.tflite"
    constants = foreign(state)
    del constants["conv2d_7/Kernel"]
    path.write_bytes(tflite(constants))
    with pytest.raises(ConversionError, match="conv2d_7/Kernel"):
        convert(path)
    path.write_bytes(tflite(foreign(state))[:1000])
    with pytest.raises(ConversionError, match="does not hold the face mesh"):
        convert(path)


def test_a_wheel_without_the_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.writestr("other", b"")
    with pytest.raises(ConversionError, match="pip download --no-deps"):
        convert(tmp_path / "some.whl")


@pytest.mark.skipif(
    WHEEL is None or importlib.util.find_spec("ai_edge_litert") is None,
    reason="needs ai-edge-litert and FACEEDIT_MEDIAPIPE_WHEEL, the wheel's path",
)
def test_points_are_those_of_the_original_runtime():
    from ai_edge_litert.interpreter import Interpreter

    net = FaceMesh().eval()
    net.load_state_dict(convert(WHEEL))
    with zipfile.ZipFile(WHEEL) as wheel:
        original = Interpreter(model_content=wheel.read(FILE))
    original.allocate_tensors()
    picture = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(picture, 17, 1, 8)
    original.set_tensor(original.get_input_details()[0]["index"], picture.permute(0, 2, 3, 1).numpy())
    original.invoke()
    points = original.get_tensor(original.get_output_details()[0]["index"]).reshape(N_POINTS, 3)[:, :2]
    with torch.no_grad():
        assert net(picture * 2 - 1)[0].numpy() == pytest.approx(points / 96 - 1, abs=1e-5)
