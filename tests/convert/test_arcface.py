"""ArcFace's weights, in the published layout with random values."""

import pytest
import torch
from irse_reference import arcface_layout, random_tensors

from faceedit.convert.arcface import arcface
from faceedit.errors import CheckpointError


@pytest.fixture(scope="module")
def published():
    return random_tensors(arcface_layout())


def test_every_tensor_arrives(published):
    network = arcface(published)
    state = network.state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in published.items())
    assert not network.training


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("body.23.res_layer.5.fc2.weight", None, "missing: body.23.res_layer.5.fc2.weight"),
        ("kernel", torch.ones(512, 2), "left over: kernel"),
        ("output_layer.3.weight", torch.ones(512, 2), r"misfitting: output_layer.3.weight is float \(512, 2\)"),
    ],
)
def test_one_wrong_tensor_is_named(published, name, value, named):
    tensors = {key: tensor for key, tensor in published.items() if key != name}
    if value is not None:
        tensors[name] = value
    with pytest.raises(CheckpointError, match=named):
        arcface(tensors)
