"""The face mesh: its shapes, its padding, and that every weight counts."""

import torch

from faceedit.models.face_mesh import N_POINTS, FaceMesh


def test_shapes_and_gradients():
    torch.manual_seed(0)
    net = FaceMesh()
    out = net(torch.rand(2, 3, 192, 192) * 2 - 1)
    assert out.shape == (2, N_POINTS, 2)
    out.square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_points_are_in_half_windows_from_the_middle():
    net = FaceMesh().eval()
    torch.nn.init.zeros_(net.points.weight)
    with torch.no_grad():
        net.points.bias.copy_(torch.tensor([96.0, 192.0]).repeat(N_POINTS))
        points = net(torch.zeros(1, 3, 192, 192))
    assert torch.allclose(points, torch.tensor([0.0, 1.0]).expand(1, N_POINTS, 2))


def test_a_halving_block_keeps_its_input_and_pads_at_the_end():
    """With no weights what is left is each 2x2 square's maximum; the filter sees the last pixels' right."""
    block = FaceMesh().body[2]
    assert block.stride == 2
    x = torch.rand(1, 16, 6, 6)
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
        kept = block(x)
        assert torch.equal(kept[:, :16], torch.nn.functional.max_pool2d(x, 2))
        assert kept.shape == (1, 32, 3, 3) and not kept[:, 16:].any()
        block.depthwise.weight[:, 0, 0, 0] = 1  # picks the first pixel of each square, unpadded
        block.pointwise.weight[16, 0] = 1
        assert torch.equal(block(x)[:, 16], x[:, 0, ::2, ::2])
        block.depthwise.weight.zero_()[:, 0, 2, 2] = 1  # and two further on, which at the end is padding
        further = block(x)[:, 16]
    assert torch.equal(further[:, :2, :2], x[:, 0, 2::2, 2::2]) and not further[:, 2].any()
