"""pSp and e4e checkpoints written in the published layout, taken apart and converted."""

from functools import partial
from pathlib import Path

import pytest
import torch
from irse_reference import TINY, TINY_ENCODER, encoder_layout, pictures, random_tensors
from safetensors.torch import load_file

from faceedit.convert import psp
from faceedit.errors import CheckpointError
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.models.psp_encoder import GradualStyleEncoder

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_encoders.safetensors"
OPTS = {"encoder_type": "Encoder4Editing", "start_from_latent_avg": True, "stylegan_size": 1024}
ROWS, DIM = TINY_ENCODER["n_styles"], TINY_ENCODER["style_dim"]


def checkpoint(opts=OPTS, **changes):
    """A small checkpoint; the decoder, which is not converted here, is two tensors."""
    state = {f"encoder.{name}": tensor for name, tensor in random_tensors(encoder_layout(**TINY_ENCODER)).items()}
    state |= {"decoder.style.1.weight": torch.ones(DIM, DIM), "decoder.input.input": torch.ones(1, DIM, 4, 4)}
    whole = {"state_dict": state, "latent_avg": torch.linspace(-1, 1, DIM), "opts": opts} | changes
    return {name: value for name, value in whole.items() if value is not None}


@pytest.fixture
def small(monkeypatch):
    """Conversion to tiny networks: the code is the same, the tensors are smaller."""
    options = {"style_dim": DIM, "input_size": TINY_ENCODER["input_size"], **TINY}
    classes = {"psp": partial(GradualStyleEncoder, **options), "e4e": partial(Encoder4Editing, **options)}
    monkeypatch.setattr(psp, "_CLASSES", classes)


def test_a_checkpoint_is_taken_apart():
    given = checkpoint()
    parts = psp.split(given)
    assert parts.kind == "e4e"
    assert set(parts.encoder) == set(encoder_layout(**TINY_ENCODER))
    assert set(parts.decoder) == {"style.1.weight", "input.input"}
    assert torch.equal(parts.latent_avg, given["latent_avg"])
    assert psp.count_styles(parts.encoder) == ROWS


@pytest.mark.parametrize(
    ("opts", "extra", "kind"),
    [
        ({"encoder_type": "GradualStyleEncoder"}, {}, "psp"),
        ({"encoder_type": "Encoder4Editing", "learn_in_w": False}, {}, "e4e"),
        ({"learn_in_w": False, "w_norm_lambda": 0}, {}, "psp"),
        ({"progressive_steps": [0, 20000]}, {}, "e4e"),
        (None, {"discriminator_state_dict": {}}, "e4e"),
    ],
)
def test_the_kind_is_told_from_what_the_training_left(opts, extra, kind):
    assert psp.split(checkpoint(opts, **extra)).kind == kind


def test_a_kind_that_nothing_tells_must_be_given():
    with pytest.raises(CheckpointError, match="kind='psp' or kind='e4e'"):
        psp.split(checkpoint(None))
    with pytest.raises(CheckpointError, match="kind='psp' or kind='e4e'"):
        psp.split(checkpoint({"learn_in_w": False, "progressive_steps": None}))
    assert psp.split(checkpoint(None), kind="psp").kind == "psp"


def test_encoders_of_other_projects_are_refused_by_name():
    opts = {"encoder_type": "BackboneEncoderUsingLastLayerIntoW"}
    with pytest.raises(CheckpointError, match="'BackboneEncoderUsingLastLayerIntoW'.*GradualStyleEncoder"):
        psp.split(checkpoint(opts))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"state_dict": None}, "'state_dict'.*this file has 'latent_avg', 'opts'"),
        ({"state_dict": {"decoder.input.input": torch.ones(1)}}, r"no tensors encoder\.\*"),
        ({"state_dict": {"encoder.x": torch.ones(1)}}, r"no tensors decoder\.\*"),
        ({"latent_avg": None}, "latent_avg.*start_from_latent_avg"),
    ],
)
def test_what_is_missing_is_named(changes, named):
    with pytest.raises(CheckpointError, match=named):
        psp.split(checkpoint(**changes))


def test_a_tensor_of_neither_network_is_refused():
    given = checkpoint()
    given["state_dict"]["avg_image"] = torch.ones(1)
    with pytest.raises(CheckpointError, match="neither encoder nor decoder: avg_image"):
        psp.split(given)


@pytest.mark.parametrize("shape", [(DIM,), (1, DIM), (ROWS, DIM)])
@torch.no_grad()
def test_codes_start_from_the_mean_of_the_file(small, shape):
    mean = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts = psp.split(checkpoint(latent_avg=mean))
    std = torch.rand(DIM)
    encoder = psp.encoder(parts.kind, parts.encoder, parts.latent_avg, ROWS, std)
    without = psp.encoder(parts.kind, parts.encoder, None, ROWS)
    assert isinstance(encoder, Encoder4Editing) and not encoder.training
    assert torch.equal(encoder.latent_std, std)
    moved = encoder(pictures()).latents - without(pictures()).latents
    torch.testing.assert_close(moved, mean.expand(2, ROWS, DIM), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_codes_that_start_from_nothing(small):
    opts = {"encoder_type": "GradualStyleEncoder", "start_from_latent_avg": False}
    parts = psp.split(checkpoint(opts, latent_avg=None))
    assert parts.latent_avg is None
    encoder = psp.encoder(parts.kind, parts.encoder, None, ROWS)
    assert type(encoder) is GradualStyleEncoder
    torch.testing.assert_close(encoder(pictures()).latents, load_file(GOLDEN)["psp.codes"], rtol=1e-4, atol=2e-5)


def test_a_mean_of_another_shape_is_refused(small):
    parts = psp.split(checkpoint(latent_avg=torch.zeros(14, DIM)))
    with pytest.raises(CheckpointError, match=rf"latent_avg has shape \(14, {DIM}\) and must be"):
        psp.encoder(parts.kind, parts.encoder, parts.latent_avg, ROWS)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda t: t.pop("styles.3.convs.4.bias"), r"missing: encoder\.styles\.3\.convs\.4\.bias\."),
        (
            lambda t: t.update({"styles.18.linear.bias": torch.ones(512)}),
            r"left over: encoder\.styles\.18\.linear\.bias\.",
        ),
        (
            lambda t: t.update({"input_layer.0.weight": torch.ones(64, 19, 3, 3)}),
            r"misfitting: encoder\.input_layer\.0\.weight is float \(64, 19, 3, 3\) and must be float \(64, 3, 3, 3\)",
        ),
    ],
    ids=["missing", "extra", "another shape"],
)
def test_one_wrong_tensor_is_named(damage, named):
    tensors = {
        name: torch.ones(()).expand(shape) if shape else torch.tensor(1) for name, shape in encoder_layout().items()
    }
    damage(tensors)
    with pytest.raises(CheckpointError, match=named):
        psp.encoder("psp", tensors, torch.zeros(512), 18)


@torch.no_grad()
def test_the_published_size_loads_to_the_last_value():
    """621 tensors, 267 million values: no memory behind them until they are copied."""
    values = torch.randn(621, generator=torch.Generator().manual_seed(0))
    layout = encoder_layout()
    tensors = {
        name: value.expand(shape) if shape else torch.tensor(i)
        for i, ((name, shape), value) in enumerate(zip(layout.items(), values, strict=True))
    }
    mean = torch.randn(512)
    state = psp.encoder("e4e", tensors, mean, 18).state_dict()
    assert set(state) == {*layout, "latent_mean", "latent_std"}
    for name, tensor in tensors.items():
        first, last = state[name].flatten()[[0, -1]]
        assert first == last == tensor.flatten()[0], name
    assert torch.equal(state["latent_mean"], mean.expand(18, 512))


@torch.no_grad()
def test_the_unit_of_codes_is_measured_on_the_generator():
    torch.manual_seed(0)
    generator = MobileStyleGAN((16, 16, 16), style_dim=DIM, preview_level=1).eval()
    found = psp.latent_std(generator)
    assert torch.equal(found, psp.latent_std(generator))
    expected = generator.map(torch.randn(20_000, DIM)).std(0)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
