"""What e4e's encoder adds to pSp's: offsets from one code, let in row by row."""

import pytest
import torch
from irse_reference import TINY_ENCODER, encoder_layout, pictures, random_tensors

from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.psp_encoder import GradualStyleEncoder

ROWS = TINY_ENCODER["n_styles"]


@pytest.fixture(scope="module")
def encoders():
    """pSp and e4e with the same weights."""
    tensors = random_tensors(encoder_layout(**TINY_ENCODER))
    pair = []
    for kind in (GradualStyleEncoder, Encoder4Editing):
        encoder = kind(**TINY_ENCODER)
        encoder.load_state_dict(tensors, strict=False)
        pair.append(encoder.eval())
    return pair


@torch.no_grad()
def test_rows_are_the_first_plus_their_offsets(encoders):
    psp, e4e = (encoder(pictures()).latents for encoder in encoders)
    assert torch.equal(e4e[:, 0], psp[:, 0])
    torch.testing.assert_close(e4e[:, 1:], psp[:, :1] + psp[:, 1:])


@pytest.mark.parametrize("active", [1, 2, 5, 8, ROWS])
@torch.no_grad()
def test_rows_that_are_not_active_repeat_the_first(encoders, active):
    everything = encoders[1](pictures()).latents
    encoders[1].active_rows = active
    try:
        latents = encoders[1](pictures()).latents
    finally:
        encoders[1].active_rows = None
    assert torch.equal(latents[:, :active], everything[:, :active])
    assert torch.equal(latents[:, active:], everything[:, :1].expand(-1, ROWS - active, -1))


def test_only_active_rows_are_trained():
    encoder = Encoder4Editing(**TINY_ENCODER)
    encoder.active_rows = 4
    encoder(pictures()).latents.square().sum().backward()
    trained = {i for i in range(ROWS) if encoder.styles[i].linear.weight.grad is not None}
    assert trained == {0, 1, 2, 3}
