"""From a foreign file to an editor: the networks are the same, and nothing is guessed."""

from collections import OrderedDict

import foreign
import numpy as np
import pytest
import torch
from tiny_editor import photo

from faceedit import FaceEditor, hub
from faceedit.convert import checkpoint, directions
from faceedit.convert.checkpoint import assemble, networks
from faceedit.convert.recognise import recognise, sha256
from faceedit.convert.verify import verify
from faceedit.errors import CheckpointError, ConversionError, UsageError
from faceedit.models.stylegan2 import StyleGAN2


def write(kind, path, edit=lambda tensors: None, content=None):
    """A tiny checkpoint in a foreign layout; `edit` may damage its generator's tensors."""
    made = foreign.generator()
    if kind == "nvidia":
        return foreign.nvidia(made, path)
    if kind == "rosinality":
        tensors = foreign.rosinality(made)
        edit(tensors)
        content = {"g_ema": tensors, "latent_avg": made.mean_latent}
    else:
        encoder_type = {"psp": "GradualStyleEncoder", "e4e": "Encoder4Editing"}[kind]
        content = foreign.psp(made, foreign.encoder(kind), encoder_type)
        edit(content["state_dict"])
    torch.save(content, path, _use_new_zipfile_serialization=kind == "e4e")  # the public e4e files are new ones
    return path


def codes(n=2):
    return 0.3 * torch.randn(n, foreign.ROWS, foreign.DIM, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["rosinality", "nvidia", "psp", "e4e"])
def test_the_networks_are_those_of_the_file(kind, tmp_path):
    source = recognise(write(kind, tmp_path / "file"))
    made = networks(source)
    expected = foreign.generator()
    torch.testing.assert_close(made.generator(codes()), expected(codes()), rtol=1e-4, atol=1e-5)
    z = torch.randn(2, foreign.DIM)
    torch.testing.assert_close(made.generator.map(z, 0.5), expected.map(z, 0.5), rtol=1e-4, atol=1e-5)
    assert made.encoder_name == (kind if kind in ("psp", "e4e") else "")
    if kind in ("psp", "e4e"):
        encoder = foreign.encoder(kind)
        encoder.latent_mean.copy_(expected.mean_latent.expand(foreign.ROWS, -1))
        picture = torch.rand(1, 3, 48, 48) * 2 - 1
        for ours, theirs in zip(made.encoder(picture), encoder(picture), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["rosinality", "nvidia", "psp", "e4e"])
def test_an_editor_edits_with_them(kind, tmp_path):
    source = recognise(write(kind, tmp_path / "file"))
    encoder = None if kind in ("psp", "e4e") else recognise(write("e4e", tmp_path / "encoder.pt"))
    np.save(tmp_path / "smile.npy", np.random.default_rng(0).normal(size=(1, foreign.DIM)))
    request = directions.parse(f"smile={tmp_path / 'smile.npy'}")
    made = assemble(networks(source, encoder), [(request, recognise(request.path))], "terms of mine")
    hub.save_checkpoint(tmp_path / "out", made.config, made.tensors, made.card)
    editor = FaceEditor.from_pretrained(tmp_path / "out")
    assert list(editor.attributes) == ["smile"] and editor.attributes["smile"].aliases == ("smiling", "happy")
    assert editor.resolution == foreign.SIZE

    picture = photo(foreign.SIZE, foreign.SIZE)
    inversion = editor.invert(picture, aligned=True)
    before, after = (editor.edit(inversion, {"smile": s}, return_result=True).faces[0] for s in (0.0, 1.0))
    moved = after.latents - before.latents
    torch.testing.assert_close(moved.norm(dim=1), torch.full((foreign.ROWS,), 3.0), rtol=1e-4, atol=0)
    expected = foreign.generator()(after.latents[None])[0]
    torch.testing.assert_close(after.edited * 2 - 1, expected.clamp(-1, 1), rtol=0, atol=1e-3)
    refined = editor.invert(picture, aligned=True, steps=3)
    assert not torch.equal(refined.latents, inversion.latents)
    # A whole photograph goes through the packaged networks for crop and person.
    packaged = FaceEditor.from_pretrained().config.crop
    assert (editor.config.crop.frame_net, editor.config.crop.person_net) == (packaged.frame_net, packaged.person_net)
    assert packaged.person_net is not None and inversion.person is not None
    # But not through the one that looks at the packaged encoder's features.
    assert packaged.parts_net is not None and editor.config.crop.parts_net is None and inversion.skin is None
    assert made.tensors["frame_net.mesh.points.weight"].abs().sum() > 0

    entries = {entry["used_for"]: entry for entry in editor.config.provenance}
    network = entries["generator and encoder" if encoder is None else "generator"]
    assert (network["file"], network["sha256"], network["licence"]) == ("file", source.sha256, "terms of mine")
    assert editor.config.licence == "terms of mine"
    assert entries["directions.smile"]["file"] == "smile.npy"
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (source.sha256, "terms of mine", "smile.npy", f"StyleGAN2 {foreign.SIZE} px", str(foreign.ROWS)):
        assert said in card
    again = editor.save_pretrained(tmp_path / "again", dtype=torch.float32)
    assert hub.load_checkpoint(again)[1].keys() == made.tensors.keys()


def test_a_generator_alone_is_a_checkpoint_without_encoder(tmp_path):
    made = assemble(networks(recognise(write("nvidia", tmp_path / "file"))))
    hub.save_checkpoint(tmp_path / "out", made.config, made.tensors, made.card)
    config, tensors = hub.load_checkpoint(tmp_path / "out")
    assert config.encoder is None and config.attributes == {} and not any(n.startswith("encoder.") for n in tensors)
    assert "cannot find the code of a photograph" in made.card
    restored = checkpoint.generator_of(config, tensors)
    torch.testing.assert_close(restored(codes()), foreign.generator()(codes()), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_without_attributes_still_inverts(tmp_path):
    made = assemble(networks(recognise(write("psp", tmp_path / "file"))))
    hub.save_checkpoint(tmp_path / "out", made.config, made.tensors, made.card)
    editor = FaceEditor.from_pretrained(tmp_path / "out")
    inversion = editor.invert(photo(foreign.SIZE, foreign.SIZE), aligned=True)
    assert inversion.reconstruction.shape == (3, foreign.SIZE, foreign.SIZE)
    assert editor.edit(inversion, {}) is not None and editor.attributes == {}


# Strictness


def lose(name):
    return lambda tensors: tensors.pop(name)


def add(name):
    return lambda tensors: tensors.update({name: torch.ones(2)})


def cut(name):
    return lambda tensors: tensors.update({name: tensors[name][..., :-1]})


@pytest.mark.parametrize(
    ("kind", "edit", "said"),
    [
        ("rosinality", lose("convs.1.conv.weight"), "missing: convs.1.conv.weight"),
        ("rosinality", add("convs.1.extra"), "left over: convs.1.extra"),
        ("rosinality", cut("convs.1.conv.weight"), "convs.1.conv.weight is float"),
        ("rosinality", lambda t: t.update({"note": "text"}), "it has note where only tensors"),
        ("rosinality", lambda t: t.update({"to_rgbs.90.bias": torch.ones(1)}), "file"),
        ("rosinality", add("style.1000000.weight"), "counts to 1000000"),
        ("rosinality", add("to_rgbs.1000000.bias"), "counts to 1000000"),
        ("psp", add("encoder.body.1000000.res_layer.1.weight"), "left over: encoder.body.1000000.res_layer.1.weight."),
        ("psp", lambda t: t.update({"encoder.body.0.note": "text"}), "it has body.0.note where only tensors"),
        ("psp", lose("encoder.body.1.res_layer.1.weight"), "missing: encoder.body.1.res_layer.1.weight"),
        ("psp", add("encoder.body.1.extra"), "left over: encoder.body.1.extra"),
        ("psp", cut("encoder.body.2.res_layer.4.bias"), "encoder.body.2.res_layer.4.bias is float"),
        ("e4e", cut("encoder.styles.3.linear.weight"), "encoder.styles.3.linear.weight is float"),
        ("e4e", lose("decoder.conv1.conv.weight"), "missing: conv1.conv.weight"),
        ("e4e", add("discriminator.x"), "discriminator.x"),
        (
            "psp",
            lambda t: [t.pop(key) for key in list(t) if key.startswith("encoder.styles.7.")],
            "7 rows of W+ and the generator of 32 px takes 8",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_the_tensor_named(kind, edit, said, tmp_path):
    source = recognise(write(kind, tmp_path / "file", edit))
    with pytest.raises(CheckpointError) as caught:
        networks(source)
    assert said in str(caught.value) and str(source.path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["mapping"].state["_buffers"].pop("w_avg"), "missing: mapping.w_avg"),
        (lambda m: m["mapping"].state["_parameters"].update(extra=torch.ones(1)), "left over: mapping.extra"),
        (lambda m: m["mapping"].state["_buffers"].update(w_avg=torch.ones(3)), "mapping.w_avg is float (3,)"),
        (lambda m: m["mapping"].state["_buffers"].update(w_avg="text"), "mapping.w_avg is a str where a tensor belongs"),
        (lambda m: m["mapping"].state.pop("_modules"), "mapping is no module"),
        (lambda m: m.update(mapping=3), "mapping is no module"),
        (lambda m: m["mapping"].state["_modules"].update(again=m["mapping"]), "no module of NVIDIA's"),
        (
            lambda m: m["synthesis"].state["_modules"]["b8"].state["_modules"]["conv0"].state.update(conv_clamp=9),
            "clamp at different values",
        ),
    ],
)
def test_an_nvidia_network_that_does_not_fit(change, said, tmp_path):
    source = recognise(write("nvidia", tmp_path / "file"))
    change(source.content["G_ema"].state["_modules"])
    with pytest.raises(CheckpointError) as caught:
        networks(source)
    assert said in str(caught.value)


def test_nvidia_clamps_are_kept(tmp_path):
    made = assemble(networks(recognise(foreign.nvidia(foreign.generator(), tmp_path / "file", clamp=0.25))))
    assert made.config.generator.options["conv_clamp"] == 0.25
    restored = checkpoint.generator_of(made.config, made.tensors)
    assert restored.synthesize(codes()).features[2].abs().max() <= 0.25


def test_files_that_give_no_such_network(tmp_path):
    np.save(tmp_path / "smile.npy", np.ones((1, 512)))
    smile, generator = recognise(tmp_path / "smile.npy"), recognise(write("nvidia", tmp_path / "n.pkl"))
    with pytest.raises(UsageError, match="an InterFaceGAN boundary.*has no generator"):
        networks(smile)
    with pytest.raises(UsageError, match="has no encoder"):
        networks(generator, generator)


def test_a_mean_latent_that_is_not_the_mean_of_w_is_computed(tmp_path):
    content = foreign.psp(foreign.generator(), foreign.encoder())
    content["latent_avg"] = torch.randn(foreign.ROWS, foreign.DIM)
    torch.save(content, tmp_path / "file")
    made = networks(recognise(tmp_path / "file"))
    torch.testing.assert_close(made.generator.mean_latent, made.generator.mapping.mean())
    torch.testing.assert_close(made.encoder.latent_mean, content["latent_avg"])


# Directions


def test_an_attribute_that_is_there_already(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, foreign.DIM)))
    wanted = [(request, recognise(request.path)) for request in map(directions.parse, [f"smile={tmp_path / 'a.npy'}"] * 2)]
    made = networks(recognise(write("nvidia", tmp_path / "n.pkl")))
    with pytest.raises(UsageError, match="has an attribute 'smile' already"):
        assemble(made, wanted)
    alias = directions.parse(f"happy={tmp_path / 'a.npy'}")
    with pytest.raises(UsageError, match="has an attribute 'happy' already"):
        assemble(made, [wanted[0], (alias, recognise(alias.path))])


def test_directions_of_another_width_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, 512)))
    request = directions.parse(f"smile={tmp_path / 'a.npy'}")
    with pytest.raises(ConversionError, match="have 512 numbers and those of the generator 24"):
        assemble(networks(recognise(write("nvidia", tmp_path / "n.pkl"))), [(request, recognise(request.path))])


def test_stylespace_goes_with_its_generator_only(tmp_path):
    (tmp_path / "list.txt").write_text("9 2 0.3\n")
    request = directions.parse(f"lips={tmp_path / 'list.txt'}:step=2")
    source = recognise(request.path)
    made = assemble(networks(recognise(write("nvidia", tmp_path / "n.pkl"))), [(request, source)])
    change = made.tensors["directions.lips"]
    generator = foreign.generator()
    scales = generator.levels[2].conv2.style(change[6]) - generator.levels[2].conv2.style.bias
    torch.testing.assert_close(scales, torch.tensor([0, 0, 0.6, 0, 0, 0, 0, 0]), rtol=0, atol=1e-5)
    default, tensors = hub.load_checkpoint(hub.resolve())
    with pytest.raises(UsageError, match="mobile_stylegan has no such channels"):
        checkpoint.add_directions(default, tensors, [(request, source)], checkpoint.generator_of(default, tensors))
    rows = directions.parse(f"lips={tmp_path / 'list.txt'}:rows=1")
    with pytest.raises(UsageError, match="takes step= only"):
        assemble(made.networks, [(rows, source)])


@pytest.fixture(scope="module")
def ffhq():
    """A small generator with the packaged mapping, which is StyleGAN2-FFHQ's."""
    made = StyleGAN2(64, channels=(16,) * 5)
    _, tensors = hub.load_checkpoint(hub.resolve())
    hub.load_module(made.mapping, tensors, "generator.mapping")
    made.mean_latent.copy_(tensors["generator.mean_latent"])
    return checkpoint.Networks(made, provenance=({"file": "x", "used_for": "generator"},))


def test_a_generator_of_ffhq_gets_the_packaged_directions(ffhq, tmp_path):
    default, tensors = hub.load_checkpoint(hub.resolve())
    made = assemble(ffhq)
    assert list(made.config.attributes) == list(default.attributes)
    for name, info in made.config.attributes.items():
        expected = tensors[f"directions.{name}"].float()
        assert torch.equal(made.tensors[f"directions.{name}"], expected[:10])
        assert info.licence and "fitted on mobile_stylegan" in info.description and not info.success
    used = {entry.get("name"): entry["used_for"] for entry in made.config.provenance}
    assert "directions.smile" in used["faceedit default checkpoint"]
    # One's own go before those that are called the same.
    np.save(tmp_path / "a.npy", np.ones((1, 512)))
    request = directions.parse(f"Happy={tmp_path / 'a.npy'}")
    made = assemble(ffhq, [(request, recognise(request.path))])
    assert list(made.config.attributes) == [*(name for name in default.attributes if name != "smile"), "happy"]


def test_public_directions_edit_the_packaged_generator(tmp_path):
    default, tensors = hub.load_checkpoint(hub.resolve())
    offsets = np.random.default_rng(0).normal(size=(1, 18, 512)).astype(np.float32)
    np.save(tmp_path / "latents.npy", offsets)
    np.save(tmp_path / "boundary.npy", offsets[:, 0])
    np.save(tmp_path / "zeros.npy", np.zeros((18, 512)))
    requests = [
        directions.parse(f"hat={tmp_path / 'latents.npy'}:minus={tmp_path / 'zeros.npy'}"),
        directions.parse(f"wavy_hair={tmp_path / 'boundary.npy'}:rows=14-17"),
    ]
    generator = checkpoint.generator_of(default, tensors)
    config, added = checkpoint.add_directions(
        default, tensors, [(request, recognise(request.path)) for request in requests], generator, "mine"
    )
    # Row 15 of StyleGAN2 is the image head's here, 16 and 17 have nothing to act on.
    np.testing.assert_array_equal(added["directions.hat"].numpy(), offsets[0, :16])
    assert added["directions.wavy_hair"].norm(dim=1).tolist() == pytest.approx([0] * 14 + [3, 3])
    assert list(config.attributes)[-2:] == ["hat", "wavy_hair"] and config.attributes["hat"].licence == "mine"
    assert config.provenance[-2]["minus"] == {"file": "zeros.npy", "sha256": sha256(tmp_path / "zeros.npy")}
    assert config.licence == default.licence and set(tensors) < set(added)


# Verification


def test_verification_measures_and_draws(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((1, foreign.DIM)))
    request = directions.parse(f"smile={tmp_path / 'a.npy'}")
    made = assemble(networks(recognise(write("psp", tmp_path / "file"))), [(request, recognise(request.path))])
    report = verify(made)
    assert report.grid.shape == (3, 3 * foreign.SIZE, 4 * foreign.SIZE)
    z = torch.randn(10_000, foreign.DIM, generator=torch.Generator().manual_seed(0))
    w = foreign.generator().map(z)
    assert report.facts["W mean"] == pytest.approx(float(w.mean()), rel=1e-4)
    assert report.facts["W standard deviation"] == pytest.approx(float(w.std(0).mean()), rel=1e-4)
    faces = foreign.generator()(foreign.generator().broadcast(foreign.generator().map(z[:4], 0.7)))
    first = report.grid[:, : foreign.SIZE, : foreign.SIZE]
    torch.testing.assert_close(first, ((faces[0] + 1) / 2).clamp(0, 1), atol=1e-3, rtol=0)
    assert report.facts["mean green, in [0, 1]"] == pytest.approx(float((faces.mean((0, 2, 3))[1] + 1) / 2), abs=1e-3)
    assert report.facts["smile +1: mean change of a pixel, in [0, 1]"] > 0.001


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda g: g.mean_latent.add_(1), "radii of W"),
        (lambda g: [head.weight.mul_(100) for head in g.heads], "pixels within 1.25"),
        (lambda g: [p.zero_() for head in g.heads for p in head.parameters()], "contrast 0"),
        (lambda g: g.heads[0].bias.fill_(float("nan")), "nan"),
    ],
)
def test_verification_refuses_what_does_not_draw(spoil, said, tmp_path):
    made = assemble(networks(recognise(write("nvidia", tmp_path / "file"))))
    spoil(made.networks.generator)
    with pytest.raises(ConversionError, match=said):
        verify(made)


def test_the_packaged_generator_has_the_mapping_of_stylegan2_ffhq():
    config, tensors = hub.load_checkpoint(hub.resolve())
    mobile = checkpoint.generator_of(config, tensors)
    assert checkpoint.mapping_distance(mobile) < 1e-6
    other = StyleGAN2(8, channels=(4, 4))
    assert checkpoint.mapping_distance(other) > 0.1
    assert checkpoint.mapping_distance(foreign.generator()) == float("inf")
    other.mapping.load_state_dict(OrderedDict(mobile.mapping.state_dict()))
    assert checkpoint.mapping_distance(other) < 1e-6
