"""pSp's and e4e's training losses against their formulas, written out."""

import copy

import pytest
import torch
from irse_reference import TINY_ENCODER, pictures

from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.train.encoder_losses import (
    LatentAdversary,
    LatentDiscriminator,
    LatentPool,
    active_rows,
    adversarial_loss,
    discriminator_loss,
    offset_loss,
    r1_penalty,
)

DIM, ROWS = 12, 6


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softplus(x):
    return torch.log1p(x.exp())


@pytest.mark.parametrize(
    ("step", "rows"),
    [(0, 1), (19_999, 1), (20_000, 2), (21_999, 2), (22_000, 3), (51_999, 17), (52_000, 18), (10**6, 18)],
)
def test_rows_are_let_in_one_by_one(step, rows):
    assert active_rows(step, 18) == rows


def test_the_schedule_of_a_short_run():
    assert [active_rows(step, 4, start=3, every=2) for step in range(9)] == [1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_offset_loss_sums_lengths_over_active_rows():
    codes = draws(3, ROWS, DIM)
    expected = sum(
        sum((codes[b, i] - codes[b, 0]).square().sum().sqrt() for b in range(3)) / 3 for i in range(1, 4)
    )
    torch.testing.assert_close(offset_loss(codes, 4), expected)
    assert offset_loss(codes, 1) == 0


def test_no_offset_has_a_finite_gradient():
    codes = draws(2, 1, DIM).repeat(1, ROWS, 1).requires_grad_()
    offset_loss(codes, ROWS).backward()
    assert codes.grad.isfinite().all()


def test_the_discriminator_is_four_layers():
    network = LatentDiscriminator(DIM)
    x = draws(2, 3, DIM)
    y = x
    for i in (0, 2, 4):
        y = y @ network.mlp[i].weight.T + network.mlp[i].bias
        y = torch.where(y > 0, y, 0.2 * y)
    y = (y @ network.mlp[6].weight.T + network.mlp[6].bias)[..., 0]
    torch.testing.assert_close(network(x), y)
    assert len([p for name, p in network.named_parameters() if name.endswith("weight")]) == 4


def test_the_encoder_is_told_to_pass_for_w():
    network, codes = LatentDiscriminator(DIM), draws(3, ROWS, DIM)
    expected = torch.stack([softplus(-network(codes[:, i])).mean() for i in range(4)]).mean()
    torch.testing.assert_close(adversarial_loss(network, codes, 4), expected)


def test_the_discriminator_is_told_apart():
    real, fake = draws(5), draws(5, seed=1)
    expected = -torch.log(real.sigmoid()).mean() - torch.log(1 - fake.sigmoid()).mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)


def test_r1_is_the_gradient_at_codes_of_w():
    """A quadratic has a gradient that can be written down: of (a.w)^2 / 2 it is (a.w) a."""
    a, codes = draws(DIM), draws(7, DIM, seed=1)
    inner = codes @ a
    expected = 10 / 2 * (inner.square() * a.square().sum()).mean()
    torch.testing.assert_close(r1_penalty(lambda w: (w @ a).square() / 2, codes), expected)


def test_r1_trains_the_discriminator():
    network = LatentDiscriminator(DIM)
    r1_penalty(network, draws(4, DIM)).backward()
    assert all(network.mlp[i].weight.grad.any() for i in (0, 2, 4, 6))


def test_a_pool_answers_with_the_newcomers_until_it_is_full():
    pool, random = LatentPool(6, DIM), torch.Generator().manual_seed(0)
    codes = draws(4, DIM)
    assert torch.equal(pool.exchange(codes, random), codes)
    assert torch.equal(pool.codes[:4], codes) and pool.filled == 4


def test_a_full_pool_swaps_half_of_what_comes():
    pool, random = LatentPool(10, 1), torch.Generator().manual_seed(0)
    pool.exchange(torch.arange(10.0)[:, None], random)
    newcomers = torch.arange(10.0, 1010.0)[:, None]
    answers = pool.exchange(newcomers, random)
    swapped = (answers != newcomers).flatten()
    assert 440 < swapped.sum() < 560
    assert (answers[swapped] < newcomers[swapped]).all(), "what is answered was there before"
    # Nothing is lost or doubled: all that ever came is in the pool or was answered, once.
    everything = torch.cat((pool.codes, answers)).flatten().sort().values
    assert torch.equal(everything, torch.arange(1010.0))


def test_a_pool_takes_one_random_row_of_each_face():
    codes = (torch.arange(400)[:, None] * 10 + torch.arange(3.0))[..., None]
    answers = LatentPool(1000, 1).exchange(codes, torch.Generator().manual_seed(0)).flatten()
    assert torch.equal(answers // 10, torch.arange(400.0))
    counts = (answers % 10).long().bincount()
    assert len(counts) == 3 and counts.min() > 100


def test_a_pool_keeps_no_graph():
    pool = LatentPool(4, DIM)
    codes = draws(2, DIM).requires_grad_()
    assert not pool.exchange(codes, torch.Generator()).requires_grad


def run(adversary, steps, random):
    """Training on faked codes: W is a small cloud at 1, the encoder's rows are one at 0."""
    return [
        adversary.update(
            1 + 0.3 * draws(8, DIM, seed=step), 0.3 * draws(8, ROWS, DIM, seed=1000 + step), 4, step, random
        )
        for step in steps
    ]


def test_the_adversary_learns_to_tell_and_its_loss_trains_only_the_encoder():
    torch.manual_seed(0)
    adversary = LatentAdversary(DIM, lr=2e-3, gamma=0.1)
    found = run(adversary, range(60), torch.Generator().manual_seed(0))
    assert found[-1]["discriminator"] < 0.5 * found[0]["discriminator"]
    assert [step for step, figures in enumerate(found) if "r1" in figures] == [0, 16, 32, 48]
    before = copy.deepcopy(adversary.discriminator.state_dict())
    adversary.optimizer.zero_grad()
    codes = torch.zeros(8, ROWS, DIM, requires_grad=True)
    adversary.loss(codes, 4).backward()
    assert (codes.grad[:, :4].sum(-1) < 0).all(), "a step down the gradient goes towards W"
    assert not codes.grad[:, 4:].any()
    assert all(p.grad is None and p.requires_grad for p in adversary.discriminator.parameters())
    assert all(torch.equal(before[k], v) for k, v in adversary.discriminator.state_dict().items())


def test_the_r1_step_is_weighted_by_its_interval():
    """A plain gradient step shows the weight: gamma / 2 x 16 x the mean squared gradient."""
    torch.manual_seed(0)
    adversary = LatentAdversary(DIM)
    adversary.optimizer = torch.optim.SGD(adversary.discriminator.parameters(), lr=1e-3)
    before = copy.deepcopy(adversary.discriminator)
    real, latents = draws(8, DIM), draws(8, ROWS, DIM, seed=1)
    adversary.update(real, latents[:, :1].repeat(1, ROWS, 1), 1, 0, torch.Generator().manual_seed(0))
    plain = torch.optim.SGD(before.parameters(), lr=1e-3)
    discriminator_loss(before(real), before(latents[:, 0])).backward()
    plain.step()
    plain.zero_grad()
    codes = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(before(codes).sum(), codes, create_graph=True)
    (16 * 5 * gradient.square().sum(1).mean()).backward()
    plain.step()
    for found, expected in zip(adversary.discriminator.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_resumed_adversary_goes_on_as_if_never_stopped():
    torch.manual_seed(0)
    straight, random = LatentAdversary(DIM, pool=10), torch.Generator().manual_seed(0)
    run(straight, range(5), random)
    state, random_state = copy.deepcopy(straight.state_dict()), random.get_state()
    expected = run(straight, range(5, 20), random)
    resumed, random = LatentAdversary(DIM, pool=10), torch.Generator()
    resumed.load_state_dict(state)
    random.set_state(random_state)
    assert run(resumed, range(5, 20), random) == expected


def test_an_e4e_encoder_learns_with_them():
    """All parts at once: a few steps bring the codes nearer to W, with small offsets."""
    torch.manual_seed(0)
    dim, rows = TINY_ENCODER["style_dim"], TINY_ENCODER["n_styles"]
    encoder, adversary, random = Encoder4Editing(**TINY_ENCODER), LatentAdversary(dim, lr=1e-3), torch.Generator()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-4)
    faces = pictures(4)
    seen = []
    for step in range(24):
        encoder.active_rows = active_rows(step, rows, start=4, every=2)
        latents = encoder(faces).latents
        adversary.update(3 + 0.1 * draws(4, dim, seed=step), latents, encoder.active_rows, step, random)
        loss = 2e-4 * offset_loss(latents, encoder.active_rows) + 0.1 * adversary.loss(latents, encoder.active_rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(latents.detach().mean().item())
    assert encoder.active_rows == rows
    assert seen[-1] > seen[3] + 0.1
