"""pSp's training: its losses, what moves, exact resuming, and from the command to an editor."""

import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from irse_reference import TINY, arcface_layout, random_tensors
from safetensors.torch import load_file, save_file
from tiny_psp import BODY, DIM, SIDE, frozen, make_encoder, make_generator, make_photos, make_recipe, make_task

from faceedit import FaceEditor, hub
from faceedit.config import CropConfig, GeneratorConfig, ModelConfig
from faceedit.errors import CheckpointError, CheckpointNotFoundError, DataError, MissingDependencyError
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.train import encoder as stage
from faceedit.train import psp as module
from faceedit.train.judges import Judges
from faceedit.train.perceptual import LPIPS
from faceedit.train.psp import load_body
from faceedit.train.trainer import Share, Trainer

networks = pytest.mark.parametrize("network", ["psp", "e4e"])


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@networks
def test_what_is_trained_gets_a_gradient_and_nothing_else_moves(network, tmp_path):
    """A row that is let in has its first gradient then: after six steps e4e has six of eight."""
    recipe = make_recipe(network, tmp_path, optimizer="adam", steps=6 if network == "e4e" else 1)
    task = make_task(recipe, identity=network == "psp")
    seen = []
    step = task.after_step

    def after_step(optimizer):
        seen.append({name for name, p in task.encoder.named_parameters() if p.grad is not None and p.grad.any()})
        step(optimizer)

    task.after_step = after_step
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    judges = [task.judges.generator, task.judges.lpips, frozen()[1]]
    frozen_before = [{k: v.clone() for k, v in judge.state_dict().items()} for judge in judges]
    Trainer(task, recipe).run()

    names = {name for name, _ in task.encoder.named_parameters()}
    for i, found in enumerate(seen):
        rows = 8 if network == "psp" else max(1, min(8, 1 + i))
        idle = {name for name in names if name.startswith("styles.") and int(name.split(".")[1]) >= rows}
        if network == "e4e" and rows <= 7:  # finer maps have no row yet that reads them
            idle |= {name for name in names if name.startswith("latlayer2")}
        if network == "e4e" and rows <= 3:
            idle |= {name for name in names if name.startswith("latlayer1")}
        assert found == names - idle
    after = task.encoder.state_dict()
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert still == {"latent_mean", "latent_std"} | (names - set().union(*seen))
    for judge, kept in zip(judges, frozen_before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in judge.state_dict().items())
        assert all(p.grad is None for p in judge.parameters())


def test_the_loss_is_the_papers(tmp_path):
    task = make_task(make_recipe("psp", tmp_path), identity=True)
    task.encoder.eval()
    total, figures = task.loss(Share(0, 0, range(4), 4))
    share = Share(0, 0, range(4), 4)
    photos = torch.from_numpy(task.photos[share.pick(6).numpy()]).permute(0, 3, 1, 2) / 127.5 - 1
    x = photos[..., 2:34, 2:34]
    x = torch.stack([face.flip(2) if mirror else face for face, mirror in zip(x, share.uniform() < 0.5, strict=True)])
    y = make_generator()(task.encoder(x).latents)
    lpips, arcface = frozen()
    l2 = (y - x).square().mean()
    perceptual = lpips(y, x).mean()
    identity = (1 - F.cosine_similarity(arcface.describe(y), arcface.describe(x))).mean()
    torch.testing.assert_close(total, l2 + 0.8 * perceptual + 0.1 * identity)
    torch.testing.assert_close(figures["id"], identity.detach())
    assert set(figures) == {"l2", "lpips", "id"}


@torch.no_grad()
def test_pictures_are_whole_and_pooled_to_256_or_previews():
    from faceedit.models.stylegan2 import StyleGAN2

    torch.manual_seed(0)
    generator = StyleGAN2(512, style_dim=8, mapping_layers=1, channels=(8,) * 8)
    code = torch.randn(1, generator.n_styles, 8)
    judges = Judges(generator, *frozen(), full=True)
    blocks = generator(code).unflatten(3, (256, 2)).unflatten(2, (256, 2)).mean((3, 5))
    torch.testing.assert_close(judges.render(code), blocks)
    assert judges.side() == 256
    judges.full = False
    torch.testing.assert_close(judges.render(code), generator.preview(code))


@networks
@pytest.mark.parametrize("optimizer", ["adam", "ranger"])
def test_a_resumed_run_is_the_uninterrupted_one(network, optimizer, tmp_path):
    if optimizer == "ranger":
        pytest.importorskip("pytorch_optimizer")
    runs = {}
    for name, stops in {"straight": (9,), "halted": (4, 9)}.items():
        for steps in stops:
            recipe = make_recipe(network, tmp_path / name, optimizer=optimizer, steps=steps)
            trainer = Trainer(make_task(recipe), recipe)
            trainer.run()
        adversary = trainer.task.state_dict().get("adversary", {})
        runs[name] = (adversary, load_file(tmp_path / name / "encoder.safetensors"))
    (adversary, one), (adversary_again, two) = runs.values()
    assert all(torch.equal(one[key], two[key]) for key in one)
    torch.testing.assert_close(adversary, adversary_again, rtol=0, atol=0)
    first, second = (
        [{k: v for k, v in line.items() if "minutes" not in k and "second" not in k} for line in lines(tmp_path / name)]
        for name in ("straight", "halted")
    )
    assert [line for line in second if line["step"] > 4] == [line for line in first if line["step"] > 4]


@networks
def test_one_batch_is_learnt_by_heart(network, tmp_path):
    settings = {"steps": 30, "batch": 2, "held_out": 6, "optimizer": "adam", "lr": 2e-3, "evaluate_every": 0}
    recipe = make_recipe(network, tmp_path, **settings, **({"rows_start": 0} if network == "e4e" else {}))
    Trainer(make_task(recipe), recipe).run()
    found = [line["l2"] for line in lines(tmp_path) if "l2" in line]
    assert sum(found[-5:]) < 0.6 * sum(found[:5])


def test_held_out_figures_and_the_grid_are_of_the_last_photographs(tmp_path):
    task = make_task(make_recipe("psp", tmp_path))
    task.encoder.eval()
    with torch.no_grad():
        figures = task.evaluate()
        x, y = task.sample_grid()
        torch.testing.assert_close(y, make_generator()(task.encoder(x).latents).clamp(-1, 1))
    expected = torch.from_numpy(make_photos().pictures[-2:]).permute(0, 3, 1, 2)[..., 2:34, 2:34] / 127.5 - 1
    torch.testing.assert_close(x, expected)
    assert figures["psnr"] == pytest.approx((-10 * ((y - x) ** 2 / 4).mean((1, 2, 3)).log10()).mean().item(), abs=1e-3)
    assert set(figures) == {"psnr", "l2", "lpips"}


def test_a_run_of_another_network_is_not_continued(tmp_path):
    """The tensors of pSp and e4e have equal names and shapes."""
    for network, other in (("psp", "e4e"), ("e4e", "psp")):
        recipe = make_recipe(network, tmp_path / network, steps=1, optimizer="adam")
        Trainer(make_task(recipe), recipe).run()
        recipe = make_recipe(other, tmp_path / network, steps=2, optimizer="adam")
        with pytest.raises(CheckpointError, match=f"it is {network} and not {other}"):
            Trainer(make_task(recipe), recipe)


def test_too_few_photographs_are_refused(tmp_path):
    with pytest.raises(DataError, match="--held-out"):
        make_task(make_recipe("psp", tmp_path, held_out=8))


def test_ranger_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    recipe = make_recipe("psp", tmp_path)
    with pytest.raises(MissingDependencyError, match="pip install pytorch-optimizer"):
        Trainer(make_task(recipe), recipe)


# First weights


def test_the_body_starts_from_arcface(tmp_path):
    save_file(random_tensors(arcface_layout(**TINY, dim=32)), tmp_path / "arcface.safetensors")
    encoder = GradualStyleEncoder(8, DIM, SIDE, **TINY)
    rest = {k: v.clone() for k, v in encoder.state_dict().items() if not k.startswith(("input_layer.", "body."))}
    load_body(encoder, tmp_path / "arcface.safetensors")
    arcface = load_file(tmp_path / "arcface.safetensors")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, rest[name] if name in rest else arcface[name])


def test_what_is_no_arcface_is_refused(tmp_path):
    encoder = make_encoder("psp")
    with pytest.raises(CheckpointNotFoundError, match=r"none\.safetensors"):
        load_body(encoder, tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_body(encoder, tmp_path / "text.safetensors")
    save_file({"stem.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="must be IR-SE50"):
        load_body(encoder, tmp_path / "other.safetensors")


# The command


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A converted generator, photographs and ArcFace, and encoders that are tiny whoever asks for one."""
    generator = make_generator()
    config = ModelConfig(GeneratorConfig("stylegan2", SIDE, 8, DIM, generator.options), crop=CropConfig(SIDE))
    tensors = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    hub.save_checkpoint(tmp_path / "generator", config, tensors, "# A generator\n")
    np.save(tmp_path / "crops.npy", make_photos().pictures)
    monkeypatch.setattr(LPIPS, "from_file", classmethod(lambda cls, path: frozen()[0]))
    monkeypatch.setattr(module, "load_identity", lambda path: frozen()[1])
    for where, name in ((module, "GradualStyleEncoder"), (stage.e4e, "Encoder4Editing")):
        kind = getattr(where, name)
        monkeypatch.setattr(where, name, functools.partial(kind, input_size=SIDE, **BODY))
    return tmp_path


def command(desk, network, **settings):
    flags = {
        "network": network, "generator": desk / "generator", "photos": desk / "crops.npy", "lpips": "l",
        "identity": "i", "out": desk / "run", "steps": 2, "batch": 2, "held_out": 2, "device": "cpu",
        "optimizer": "adam", **settings,
    }  # fmt: skip
    argv = [str(word) for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", value)]
    assert stage.main(argv) == 0


@networks
def test_from_the_command_to_an_editor(network, desk):
    command(desk, network)
    editor = FaceEditor.from_pretrained(desk / "run" / "checkpoint")
    kind = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}[network]
    assert type(editor._encoder) is kind and editor.config.encoder.name == network
    assert editor.config.provenance[-1]["note"] == f"{network}, 2 steps of 2 faces"
    inversion = editor.invert(make_photos().pictures[0], aligned=True)
    generator = make_generator()
    torch.testing.assert_close(editor.generator(inversion.latents[None]), generator(inversion.latents[None]))
    w = generator.map(torch.randn(20_000, DIM))
    torch.testing.assert_close(editor._encoder.latent_mean, w.mean(0).expand(8, -1), atol=0.05, rtol=0)
    torch.testing.assert_close(editor._encoder.latent_std, w.std(0), atol=0.05, rtol=0)
    if network == "e4e":  # no offsets yet, after two steps of twenty thousand
        assert (inversion.latents == inversion.latents[:1]).all()
    assert (desk / "run" / "checkpoint" / "README.md").read_text().startswith("# A generator\n\n## Its own encoder")


def test_a_checkpoints_encoder_can_be_trained_on(desk):
    command(desk, "psp")
    command(desk, "psp", init=desk / "run" / "checkpoint" / "model.safetensors", out=desk / "more", lr=1e-9, steps=1)
    first, more = (load_file(desk / name / "encoder.safetensors") for name in ("run", "more"))
    for name, value in first.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(more[name], value, atol=1e-6, rtol=0)
