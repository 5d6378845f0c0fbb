"""IR-SE blocks and ArcFace's network against NumPy in float64, and the published layout."""

from pathlib import Path

import pytest
import torch
from irse_reference import TINY, arcface_layout, body, double, irse_block, pictures, random_tensors
from safetensors.torch import load_file

from faceedit.models.ir_se50 import ArcFaceNet, Body, IRSEBlock, input_layer

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_encoders.safetensors"


def filled(module, seed=0):
    """A module in evaluation mode with random tensors, and these as float64 arrays."""
    layout = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = random_tensors(layout, seed)
    module.load_state_dict(tensors)
    return module.eval(), double(tensors)


@pytest.mark.parametrize(
    ("n_in", "n_out", "stride"), [(32, 32, 1), (32, 32, 2), (16, 32, 1), (16, 48, 2)],
    ids=["same", "halved by the skip", "widened", "widened and halved"],
)  # fmt: skip
@torch.no_grad()
def test_a_block_is_its_formula(n_in, n_out, stride):
    block, tensors = filled(IRSEBlock(n_in, n_out, stride))
    x = torch.randn(2, n_in, 10, 8, generator=torch.Generator().manual_seed(0))
    expected = irse_block(x.double().numpy(), {f"b.{name}": t for name, t in tensors.items()}, "b", stride)
    torch.testing.assert_close(block(x).double().numpy(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_body_gives_the_map_after_each_stage():
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({"input_layer": input_layer(16), "body": Body(**TINY)})
    parts, tensors = filled(parts)
    x = pictures(size=32)
    found = parts["body"].stages(parts["input_layer"](x))
    expected = body(x.double().numpy(), tensors, TINY["units"])
    assert [level.shape[-1] for level in found] == [16, 8, 4, 2]
    for level, array in zip(found, expected, strict=True):
        torch.testing.assert_close(level.double().numpy(), array, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[-1], parts["body"](parts["input_layer"](x)))


def test_arcface_has_the_published_layout():
    with torch.device("meta"):
        network = ArcFaceNet()
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == arcface_layout()
    assert len(found) == 397
    assert found["output_layer.3.weight"] == (512, 512 * 7 * 7)
    assert found["body.3.shortcut_layer.0.weight"] == (128, 64, 1, 1)
    assert found["body.23.res_layer.5.fc1.weight"] == (32, 512, 1, 1)
    assert "body.0.shortcut_layer.0.weight" not in found and "body.24.res_layer.1.weight" not in found


@torch.no_grad()
def test_arcface_gives_the_golden_descriptors():
    network = ArcFaceNet(**TINY, size=32, dim=20)
    network.load_state_dict(random_tensors(arcface_layout(**TINY, size=32, dim=20)))
    found = network.eval()(pictures(size=32))
    torch.testing.assert_close(found, load_file(GOLDEN)["arcface"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_the_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    network = ArcFaceNet(**TINY, size=32, dim=20)
    network(torch.randn(4, 3, 32, 32))[:, 0].sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
