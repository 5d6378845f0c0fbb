"""The person net's converter: a .tflite file written here and read back, and the real one."""

import importlib.util
import os

import numpy as np
import pytest
import torch
from tflite_file import check_reading, tflite
from torch import nn

from faceedit.convert.person_net import convert
from faceedit.errors import ConversionError
from faceedit.models.person_net import PersonNet

WHEEL = os.environ.get("FACEEDIT_MEDIAPIPE_WHEEL")
FILE = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"


def foreign(net):
    """The constants as the file has them: numbered by kind of layer, the first without a number."""
    constants, seen = {}, {"conv2d": 0, "depthwise_conv2d": 0}
    for layer in net.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            name, kernel = "segment", layer.weight.permute(1, 2, 3, 0)
        elif isinstance(layer, nn.Conv2d):
            kind = "conv2d" if layer.groups == 1 else "depthwise_conv2d"
            name = f"{kind}_{seen[kind]}" if seen[kind] else kind
            seen[kind] += 1
            kernel = layer.weight.permute((0, 2, 3, 1) if layer.groups == 1 else (1, 2, 3, 0))
        else:
            continue
        constants[f"{name}/Kernel"], constants[f"{name}/Bias"] = kernel.detach(), layer.bias.detach()
    return constants


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = PersonNet().eval()
    for value in net.parameters():
        value.data = value.data.half().float()
    return net


def test_a_file_written_in_the_foreign_layout_is_read_back(net, tmp_path):
    check_reading(convert, foreign(net), net.state_dict(), FILE, tmp_path)


def test_another_network_is_refused(net, tmp_path):
    path = tmp_path / "other.tflite"
    constants = foreign(net)
    del constants["depthwise_conv2d_7/Kernel"]
    path.write_bytes(tflite(constants))
    with pytest.raises(ConversionError, match="selfie segmentation.*depthwise_conv2d_7/Kernel"):
        convert(path)


@pytest.mark.skipif(
    WHEEL is None or importlib.util.find_spec("mediapipe") is None,
    reason="needs mediapipe and FACEEDIT_MEDIAPIPE_WHEEL, the wheel's path",
)
def test_masks_are_those_of_the_original_runtime():
    import mediapipe

    net = PersonNet().eval()
    net.load_state_dict(convert(WHEEL))
    picture = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    picture = (nn.functional.avg_pool2d(picture, 33, 1, 16) * 255).round()
    with mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as original:
        mask = original.process(picture[0].permute(1, 2, 0).byte().contiguous().numpy()).segmentation_mask
    with torch.no_grad():
        assert net(picture / 255)[0, 0].numpy() == pytest.approx(np.asarray(mask), abs=1e-3)
