"""The person net: shapes, paddings, and what the packaged one sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faceedit import FaceEditor
from faceedit.models.ops import pad_same
from faceedit.models.person_net import PersonNet

ASTRONAUT = Path(__file__).parents[2] / "examples" / "astronaut.png"


@pytest.mark.parametrize(("size", "stride", "margins"), [(3, 1, (1, 1)), (5, 1, (2, 2)), (3, 2, (0, 1)), (5, 2, (1, 2))])
def test_padding_is_tensorflows(size, stride, margins):
    before, after = margins
    padded = pad_same(torch.ones(1, 1, 8, 8), size, stride)[0, 0]
    assert padded.shape == (8 + size - stride,) * 2
    assert padded[before : before + 8, before : before + 8].all() and padded.sum() == 64
    assert padded.shape[0] - before - 8 == after


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_a_mask_has_the_networks_side_whatever_the_crop(size):
    torch.manual_seed(0)
    net = PersonNet().eval()
    mask = net.find(torch.rand(3, size, size))
    assert mask.shape == (256, 256) and mask.min() >= 0 and mask.max() <= 1


def test_every_layer_has_a_say():
    torch.manual_seed(0)
    net = PersonNet()
    net(torch.rand(2, 3, 256, 256)).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in net.parameters())


def test_the_packaged_net_tells_a_person_from_the_background():
    picture = torch.from_numpy(np.asarray(Image.open(ASTRONAUT).convert("RGB")).copy()).permute(2, 0, 1) / 255
    mask = FaceEditor.from_pretrained()._person_net.find(picture)
    face, shoulder, sky = mask[30:70, 100:130], mask[150:200, 60:90], mask[10:60, 160:240]
    assert face.min() > 0.95 and shoulder.min() > 0.95 and sky.max() < 0.05
