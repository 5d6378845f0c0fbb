"""The editor's promises, shown on a tiny one with random weights."""

import dataclasses
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hub_server import HubServer, run_client
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_editor import DIM, RANGES, ROWS, SIZE, make_editor, make_latent_classifier, make_stylegan2_editor, photo

from faceedit import EditResult, FaceEditor, Inversion, faces
from faceedit import editor as editor_module
from faceedit.blend import face_parts
from faceedit.config import AttributeInfo
from faceedit.crop import CropFrame, frame_from_landmarks
from faceedit.directions import Directions
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    FaceSelectionError,
    ImageError,
    ImageNotFoundError,
    NoFaceError,
    OutputExistsError,
    StrengthError,
    UnknownAttributeError,
    UsageError,
)
from faceedit.faces import Face
from faceedit.models.person_net import PersonNet
from faceedit.models.parts_net import PartsNet

BOXES = [(20.0, 30.0, 50.0, 62.0), (80.0, 25.0, 104.0, 50.0), (60.0, 70.0, 78.0, 88.0)]
LANDMARKS = np.array([(40, 40), (60, 40), (50, 50), (43, 62), (57, 62)])


@pytest.fixture(scope="module")
def editor():
    return make_editor()


@pytest.fixture
def found(monkeypatch):
    """What the face detector finds in every picture, largest first; a test may change the list."""
    there = [Face(box, 1.0) for box in BOXES[:1]]
    monkeypatch.setattr(faces, "detect", lambda pixels: list(there))
    return there


@pytest.fixture
def no_detector(monkeypatch):
    def detect(pixels):
        raise AssertionError("a face was looked for")

    monkeypatch.setattr(faces, "detect", detect)


@contextmanager
def counted(editor):
    """Counts full passes, previews and encoder passes while the block runs."""
    counts = SimpleNamespace(full=0, preview=0, encoder=0)
    modules = {
        "full": editor._generator.head,  # read by the full pass only
        "preview": editor._generator.preview_head,
        "encoder": editor._encoder,
    }

    def count(name):
        def hook(*_):
            setattr(counts, name, getattr(counts, name) + 1)

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def levels_apart(a, b):
    """The largest difference of two uint8 pictures, in grey levels."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


# What comes back


def as_path(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def as_file(pixels, tmp_path):
    return io.BytesIO(as_path(pixels, tmp_path).read_bytes())


@pytest.mark.parametrize(
    ("given", "kind", "what"),
    [
        (lambda p, t: Image.fromarray(p), Image.Image, ("RGB", (128, 96))),
        (lambda p, t: Image.fromarray(p).convert("L"), Image.Image, ("L", (128, 96))),
        (lambda p, t: Image.fromarray(p).convert("RGBA"), Image.Image, ("RGBA", (128, 96))),
        (as_path, Image.Image, ("RGB", (128, 96))),
        (lambda p, t: str(as_path(p, t)), Image.Image, ("RGB", (128, 96))),
        (as_file, Image.Image, ("RGB", (128, 96))),
        (lambda p, t: p, np.ndarray, (np.uint8, (96, 128, 3))),
        (lambda p, t: (p / 255).astype(np.float32), np.ndarray, (np.float32, (96, 128, 3))),
        (lambda p, t: torch.tensor(p).permute(2, 0, 1), torch.Tensor, (torch.uint8, (3, 96, 128))),
        (lambda p, t: torch.tensor(p).permute(2, 0, 1)[None] / 255, torch.Tensor, (torch.float32, (1, 3, 96, 128))),
    ],
    ids=["PIL RGB", "PIL L", "PIL RGBA", "path", "str", "file", "uint8", "float32", "tensor uint8", "tensor batch"],
)  # fmt: skip
def test_the_same_type_out_as_in(editor, found, tmp_path, given, kind, what):
    image = given(photo(), tmp_path)
    edited = editor.edit(image, smile=1.0)
    assert isinstance(edited, kind)
    if kind is Image.Image:
        assert (edited.mode, edited.size) == what
    else:
        assert (edited.dtype, tuple(edited.shape)) == what
    before = np.asarray(Image.fromarray(photo()).convert(what[0])) if kind is Image.Image else np.asarray(image)
    assert np.asarray(edited).shape == before.shape
    assert not np.array_equal(np.asarray(edited), before)


def test_the_callers_picture_is_left_alone(editor, found):
    image = photo()
    copy = image.copy()
    editor.edit(image, smile=1.0)
    assert np.array_equal(image, copy)


@pytest.mark.parametrize("strengths", [{}, {"smile": 0.0}, {"smile": 0, "age": -0.0}])
def test_no_strength_gives_the_picture_back_bit_for_bit(editor, found, strengths):
    eight_bit = photo()
    assert np.array_equal(editor.edit(eight_bit, strengths), eight_bit)
    # Floats between the levels of 8 bits too.
    floats = np.random.default_rng(0).random((90, 70, 3), dtype=np.float32)
    assert np.array_equal(editor.edit(floats, strengths), floats)
    square = photo(80, 80)
    assert np.array_equal(editor.edit(square, strengths, aligned=True), square)


def test_pixels_outside_the_crop_are_bit_identical(editor, found):
    image = photo()
    result = editor.edit(image, smile=1.0, return_result=True)
    frame = result.faces[0].frame
    y, x = np.mgrid[:96, :128] + 0.5
    axis = np.array(frame.x_axis)
    away = np.stack([x - frame.center[0], y - frame.center[1]])
    along = np.abs(np.tensordot(axis, away, 1)) / (axis @ axis)
    across = np.abs(np.tensordot([-axis[1], axis[0]], away, 1)) / (axis @ axis)
    outside = np.maximum(along, across) > 1
    changed = (result.image != image).any(-1)
    assert outside.any() and changed.any()
    assert not (changed & outside).any()


def test_pixels_where_the_mask_is_zero_are_bit_identical(editor):
    image = photo(SIZE, SIZE)
    inversion = editor.invert(image, aligned=True)
    partly = 0
    for strength in (0.02, 0.03, 0.04, 0.06, 0.08):  # so faint that a part of the face stays
        result = editor.edit(inversion, smile=strength, return_result=True)
        mask = result.faces[0].mask.numpy()
        assert np.array_equal(result.image[mask == 0], image[mask == 0])
        partly += (mask == 0).any() and not np.array_equal(result.image, image)
    assert partly


def test_a_result_has_the_crops_and_the_details(editor, found):
    result = editor.edit(photo(), {"smile": 1}, age=-0.5, return_result=True)
    assert isinstance(result, EditResult)
    (face,) = result.faces
    assert face.strengths == {"smile": 1.0, "age": -0.5}
    for picture in (face.crop, face.output, face.edited, face.reconstruction):
        assert picture.shape == (3, SIZE, SIZE)
        assert 0 <= picture.min() and picture.max() <= 1
    assert face.mask.shape == (SIZE, SIZE)
    assert face.latents.shape == (ROWS, DIM)
    assert not torch.equal(face.edited, face.reconstruction)


# Inverting once, editing often


def test_an_inversion_edits_like_its_photo(editor, found):
    image = photo()
    inversion = editor.invert(image)
    assert isinstance(inversion, Inversion)
    assert inversion.box == BOXES[0]
    for strengths in ({"smile": 1.0}, {"age": -1.5, "smile": 0.5}, {}):
        assert np.array_equal(editor.edit(inversion, strengths), editor.edit(image, strengths))


def test_a_move_of_a_slider_costs_one_generator_pass_and_nothing_else(editor, found):
    with counted(editor) as counts:
        inversion = editor.invert(photo())
    assert (counts.encoder, counts.full, counts.preview) == (1, 1, editor._encoder.looks)
    found.clear()  # nobody may look for the face again
    for strength in (-1.0, 0.5, 1.0):
        with counted(editor) as counts:
            editor.edit(inversion, smile=strength)
        assert (counts.encoder, counts.full, counts.preview) == (0, 1, 0)
    with counted(editor) as counts:
        editor.edit(inversion, smile=0.0)
    assert (counts.encoder, counts.full, counts.preview) == (0, 0, 0)


def test_an_inversion_can_be_kept_in_a_file(editor, found, tmp_path):
    inversion = editor.invert(photo())
    path = inversion.save(tmp_path / "face.safetensors")
    loaded = Inversion.load(path)
    assert loaded.picture is None and loaded.frame == inversion.frame
    with counted(editor) as counts:
        face = editor.edit(loaded, smile=1.0)
    assert (counts.encoder, counts.full) == (0, 1)
    assert face.size == (SIZE, SIZE)
    expected = editor.edit(inversion, smile=1.0, return_result=True).faces[0].output
    assert np.array_equal(face, (expected * 255).round().byte().permute(1, 2, 0).numpy())


def test_a_code_alone_can_be_edited(editor):
    latents = editor._generator.sample(1, seed=0)[0]
    face = editor.edit(Inversion(latents=latents), smile=1.0)
    assert face.size == (SIZE, SIZE)


# Steps of each face's own length


@pytest.fixture(scope="module")
def stepping(editor):
    return editor.with_latent_classifier(make_latent_classifier())


def test_strengths_are_steps_of_this_face(editor, stepping, found):
    inversion = editor.invert(photo())
    (face,) = stepping.edit(inversion, smile=1.0, age=-0.5, beard=0.7, return_result=True).faces
    step = stepping.latent_classifier.step
    lengths = {
        name: step(inversion.latents, editor.directions.vectors[name], name, sense)
        for name, sense in (("smile", 1), ("age", -1))
    }
    assert len({*lengths.values(), 1.0}) == 3  # so that the comparison below says something
    assert face.strengths == {"smile": 1.0, "age": -0.5, "beard": 0.7}
    assert face.applied == pytest.approx({"smile": lengths["smile"], "age": -0.5 * lengths["age"], "beard": 0.7})
    torch.testing.assert_close(face.latents, inversion.latents + editor.directions.offset(face.applied))
    (plain,) = editor.edit(inversion, face.applied, return_result=True).faces
    assert torch.equal(face.output, plain.output) and plain.applied == plain.strengths


def test_every_face_has_its_own_step(stepping):
    one, other = (Inversion(latents=latents) for latents in 3 * torch.randn(2, ROWS, DIM, generator=torch.Generator().manual_seed(0)))
    steps = [stepping.edit(face, smile=1.0, return_result=True).faces[0].applied["smile"] for face in (one, other)]
    assert steps[0] != steps[1]


def test_a_face_that_needs_no_step_stays_bit_for_bit(editor, found):
    classifier = make_latent_classifier()
    classifier.goals.fill_(-1e3)
    classifier.shortest.zero_()
    assert np.array_equal(editor.with_latent_classifier(classifier).edit(photo(), glasses=1.0), photo())


def test_the_content_branch_sees_the_steps(found):
    refining = make_editor(content=True).with_latent_classifier(make_latent_classifier())
    inversion = refining.invert(photo())
    (face,) = refining.edit(inversion, smile=1.0, return_result=True).faces
    expected = fused(refining, inversion, face.latents, face.applied)
    torch.testing.assert_close(face.refined, ((expected.image[0] + 1) / 2).clamp(0, 1))


def test_steps_are_kept_in_the_checkpoint_and_on_every_device(stepping, found, tmp_path):
    stepping = stepping.with_latent_classifier(make_latent_classifier(("smile", "beard", "gender")))
    classifier = stepping.latent_classifier
    loaded = FaceEditor.from_pretrained(stepping.save_pretrained(tmp_path / "one", dtype=torch.float32))
    assert loaded.config.latent_classifier.attributes == ("smile", "beard", "gender")
    assert np.array_equal(loaded.edit(photo(), smile=1.0, beard=-1.0), stepping.edit(photo(), smile=1.0, beard=-1.0))
    half = stepping.to(dtype=torch.bfloat16)
    assert half.latent_classifier is classifier and classifier.goals.dtype == torch.float32
    assert stepping.with_latent_classifier(None).config.latent_classifier is None


def test_directions_of_ones_own_have_one_length_for_all_faces(stepping, found):
    grin = Directions({"smile": torch.ones(ROWS, DIM)})
    more = stepping.load_directions(grin, replace=True)
    assert more.latent_classifier.attributes == ("age", "glasses")
    assert more.config.latent_classifier.attributes == ("age", "glasses")
    (face,) = more.edit(photo(), smile=1.0, age=1.0, return_result=True).faces
    assert face.applied["smile"] == 1.0 and face.applied["age"] != 1.0
    hat = Directions({"hat": torch.ones(ROWS, DIM)})
    assert stepping.load_directions(hat).latent_classifier is stepping.latent_classifier
    every = Directions({name: torch.ones(ROWS, DIM) for name in ("smile", "age", "glasses")})
    assert stepping.load_directions(every, replace=True).latent_classifier is None


# Refining with the photograph's content


@pytest.fixture(scope="module")
def refining():
    return make_editor(content=True)


def fused(editor, inversion, latents, strengths):
    maps = [level[None] for level in inversion.features]
    with torch.no_grad():
        return editor.fusion(maps, latents[None], [strengths])


def test_refined_pictures_are_those_of_the_fusion_generator(refining, found):
    inversion = refining.invert(photo())
    result = refining.edit(inversion, smile=1.0, beard=-0.5, return_result=True, explain=True)
    (face,) = result.faces
    expected = fused(refining, inversion, face.latents, {"smile": 1.0, "beard": -0.5})
    torch.testing.assert_close(face.refined, ((expected.image[0] + 1) / 2).clamp(0, 1))
    assert [tuple(m.shape) for m in face.relevance] == [(16, 16), (32, 32)]
    for ours, theirs in zip(face.relevance, expected.relevance, strict=True):
        torch.testing.assert_close(ours, theirs[0, 0])
    unedited = fused(refining, inversion, inversion.latents, {})
    torch.testing.assert_close(face.reconstruction, ((unedited.image[0] + 1) / 2).clamp(0, 1))
    assert torch.equal(inversion.reconstruction, face.reconstruction)
    assert not torch.allclose(face.edited, face.refined, atol=1e-3)


def test_detail_that_the_encoder_does_not_see_is_in_the_refined_picture(refining):
    """Stripes of 2 px on a crop of 64 px: gone at the encoder's 32 px, not at the 64 px that the content branch reads."""
    smooth = torch.full((3, SIZE, SIZE), 0.5)
    striped = smooth + 0.2 * torch.tensor([1.0, -1.0]).repeat(SIZE // 2)
    plain, other = (refining.invert(x, aligned=True) for x in (smooth, striped))
    assert refining.encoder.input_size == SIZE // 2
    torch.testing.assert_close(plain.latents, other.latents, atol=1e-3, rtol=0)
    torch.testing.assert_close(plain.drawn, other.drawn, atol=1e-3, rtol=0)
    assert (plain.reconstruction - other.reconstruction).abs().max() > 0.05


@pytest.fixture
def composed(monkeypatch):
    """The arguments of every composition."""
    given, compose = [], editor_module.compose
    monkeypatch.setattr(editor_module, "compose", lambda *args, **how: given.append(args) or compose(*args, **how))
    return given


def test_a_refined_edit_is_held_to_what_the_style_branch_draws(refining, editor, found, composed):
    inversion = refining.invert(photo())
    torch.testing.assert_close(inversion.drawn, editor.edit(photo(), preview=True, return_result=True).faces[0].reconstruction)
    assert editor.invert(photo()).drawn is None
    composed.clear()
    refining.edit(inversion, smile=1.0)
    refining.edit(inversion, smile=1.0, refine=False)
    assert composed[0][3] is inversion.drawn and composed[1][3] is None


def test_a_refined_edit_shows_more_of_its_brightness_in_the_face(refining, found, monkeypatch):
    """Content that is fused into it holds it back; an edit of the style branch alone is pasted as it is drawn."""
    emphases, compose = [], editor_module.compose
    monkeypatch.setattr(
        editor_module, "compose", lambda *args, emphasis: emphases.append(emphasis) or compose(*args, emphasis=emphasis)
    )
    inversion = refining.invert(photo())
    refining.edit(inversion, age=1.0)
    refining.edit(inversion, age=1.0, refine=False)
    assert emphases[0] > 0 and emphases[1] == 0


def test_an_edit_is_held_to_the_outlines_of_the_face(refining, found, composed):
    inversion = refining.invert(photo())
    kept = (inversion.outline, inversion.eyes, inversion.mouth)
    assert all(map(torch.equal, kept, refining._frame_net.outlines(inversion.crop)))
    refining.edit(inversion, smile=1.0)
    refining.edit(inversion, smile=1.0, refine=False)
    assert composed[0][4] is composed[1][4] is inversion.outline
    assert all(given[6:] == (inversion.eyes, inversion.mouth, inversion.skin, inversion.hair) for given in composed)


def test_an_edit_divides_no_mouth_and_no_eyes(refining, found, monkeypatch):
    """Its relevance maps know the parts of the face; a reconstruction, and a face without outlines, have none."""
    given, fused = [], type(refining._fusion).forward
    monkeypatch.setattr(
        type(refining._fusion), "forward", lambda self, *args: given.append(args[4]) or fused(self, *args)
    )
    inversion = refining.invert(photo())
    refining.edit(inversion, smile=1.0)
    refining.edit(dataclasses.replace(inversion, mouth=None), smile=1.0)
    reconstruction, edit, unknown = given
    assert reconstruction is None and unknown is None
    assert torch.equal(edit, face_parts(inversion.outline, inversion.eyes, inversion.mouth))


@pytest.fixture
def guarded(refining, monkeypatch):
    """An editor whose person net finds somebody in the left half of every crop."""
    monkeypatch.setattr(PersonNet, "find", lambda net, crop: (torch.arange(256) < 128).float().expand(256, 256))
    config = dataclasses.replace(refining.config, crop=dataclasses.replace(refining.config.crop, person_net={}))
    torch.manual_seed(0)
    return refining._with(config=config, person_net=PersonNet())


def test_beside_the_person_nothing_is_edited(guarded, refining, found, composed):
    inversion = guarded.invert(photo())
    assert inversion.person.shape == (256, 256) and refining.invert(photo()).person is None
    for refine in (True, False):
        face, free = (e.edit(inversion, smile=3.0, refine=refine, return_result=True).faces[0] for e in (guarded, refining))
        assert composed[-1][5] is inversion.person
        # What an inversion knows counts, whoever made it.
        assert torch.equal(face.output, free.output)
        beside = slice(int(0.7 * face.mask.shape[-1]), None)
        assert not face.mask[:, beside].any() and face.mask.any()
        assert torch.equal(face.output[..., beside], face.crop[..., beside])
        unguarded = dataclasses.replace(inversion, person=None)
        assert refining.edit(unguarded, smile=3.0, refine=refine, return_result=True).faces[0].mask[:, beside].any()


@pytest.fixture
def skinned(refining, monkeypatch):
    """An editor whose parts net finds bare skin in the left half of every crop, and hair in its top row."""
    half = (torch.arange(256) < 128).float().expand(256, 256)
    top = (torch.arange(256) < 1).float()[:, None].expand(256, 256)
    monkeypatch.setattr(PartsNet, "find", lambda net, features: torch.stack((half, top)).expand(len(features[0]), -1, -1, -1))
    config = dataclasses.replace(refining.config, crop=dataclasses.replace(refining.config.crop, parts_net={"width": 6}))
    torch.manual_seed(0)
    encoder = refining.encoder
    return refining._with(config=config, parts_net=PartsNet(encoder.feature_channels, encoder.feature_sizes, 6))


def test_no_edit_shows_where_the_face_is_covered(skinned, refining, found, composed):
    inversion = skinned.invert(photo())
    plain = refining.invert(photo())
    assert inversion.skin.shape == inversion.hair.shape == (256, 256) and plain.skin is None and plain.hair is None
    for refine in (True, False):
        face = skinned.edit(inversion, smile=3.0, refine=refine, return_result=True).faces[0]
        assert composed[-1][8] is inversion.skin and composed[-1][9] is inversion.hair
        size = face.mask.shape[-1]
        covered = (slice(0, int(0.55 * size)), slice(int(0.6 * size), None))
        assert not face.mask[covered].any() and face.mask.any()
        output, crop = (x[(slice(None), *covered)] for x in (face.output, face.crop))
        assert torch.equal(output, crop)
        bare = dataclasses.replace(inversion, skin=None)
        assert refining.edit(bare, smile=3.0, refine=refine, return_result=True).faces[0].mask[covered].any()


def test_the_parts_net_looks_at_the_encoders_features_of_each_face(skinned, found, monkeypatch):
    seen = []
    monkeypatch.setattr(
        PartsNet, "find", lambda net, features: seen.append(features) or torch.arange(2 * len(features[0])).view(-1, 2, 1, 1) / 2.0
    )
    inversions = skinned.invert(photo(), faces="all")
    (features,) = seen
    assert [tuple(f.shape[:2]) for f in features] == [(len(inversions), n) for n in skinned.encoder.feature_channels]
    assert [(float(each.skin), float(each.hair)) for each in inversions] == [(i, i + 0.5) for i in range(len(inversions))]


@pytest.mark.parametrize(
    ("fixture", "net", "tensor"), [("guarded", "person_net", "stem.bias"), ("skinned", "parts_net", "leave.bias")]
)
def test_the_nets_that_guard_a_photograph_go_into_the_checkpoint(fixture, net, tensor, request, tmp_path):
    editor = request.getfixturevalue(fixture)
    loaded = FaceEditor.from_pretrained(editor.save_pretrained(tmp_path / "it", dtype=torch.float32))
    assert loaded.config == editor.config
    weights, again = (getattr(each, f"_{net}").state_dict() for each in (editor, loaded))
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    rewrite(tmp_path / "it", lambda tensors: tensors.pop(f"{net}.{tensor}"))
    with pytest.raises(CheckpointError, match=f"{net}.{tensor}"):
        FaceEditor.from_pretrained(tmp_path / "it")


def test_without_refining_the_style_branch_edits_as_if_there_were_no_other(refining, editor, found):
    plain = editor.edit(photo(), smile=1.0, return_result=True)
    result = refining.edit(photo(), smile=1.0, refine=False, return_result=True)
    assert np.array_equal(result.image, plain.image)
    (face,), (wanted,) = result.faces, plain.faces
    assert face.refined is None and face.relevance == ()
    assert torch.equal(face.edited, wanted.edited) and torch.equal(face.reconstruction, wanted.reconstruction)
    assert not np.array_equal(refining.edit(photo(), smile=1.0), plain.image)
    kept = refining.edit(refining.invert(photo()), smile=1.0, refine=False)
    assert np.array_equal(kept, plain.image)


def test_the_style_branchs_picture_is_drawn_only_for_an_explanation(refining, editor, found):
    inversion = refining.invert(photo())
    assert refining.edit(inversion, smile=1.0, return_result=True).faces[0].edited is None
    explained = refining.edit(inversion, smile=1.0, explain=True, return_result=True).faces[0]
    assert torch.equal(explained.edited, editor.edit(photo(), smile=1.0, return_result=True).faces[0].edited)


def test_a_refined_edit_encodes_nothing_again(refining, found):
    with counted(refining) as counts:
        inversion = refining.invert(photo())
    assert counts.encoder == 1
    with counted(refining) as counts:
        refining.edit(inversion, smile=0.5)
    assert (counts.encoder, counts.full, counts.preview) == (0, 1, 0)


def test_previews_and_batches_are_refined_too(refining, found):
    inversion = refining.invert(photo())
    face = refining.edit(inversion, smile=1.0, preview=True, return_result=True).faces[0]
    assert face.refined.shape == (3, SIZE // 2, SIZE // 2)
    assert len(face.relevance) == 1  # the early exit comes before the second fused level
    one, other = photo(), photo(seed=3)
    batch = refining.edit_batch([one, other], smile=1.0)
    assert np.array_equal(batch[1], refining.edit(other, smile=1.0))
    plain = refining.edit_batch([one], smile=1.0, refine=False)
    assert np.array_equal(plain[0], refining.edit(one, smile=1.0, refine=False))


def test_a_refining_checkpoint_comes_back_as_it_was(refining, found, tmp_path):
    refining.save_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    again = FaceEditor.from_pretrained(tmp_path / "checkpoint")
    assert again.config == refining.config and again.config.fusion.attributes == ("smile", "age", "gender")
    assert np.array_equal(again.edit(photo(), smile=1.0), refining.edit(photo(), smile=1.0))


def test_content_maps_are_kept_in_the_file_of_an_inversion(refining, found, tmp_path):
    inversion = refining.invert(photo())
    loaded = Inversion.load(inversion.save(tmp_path / "face.safetensors"))
    wanted = refining.edit(inversion, age=1.0, return_result=True).faces[0].refined
    assert torch.equal(refining.edit(loaded, age=1.0, return_result=True).faces[0].refined, wanted)


def test_content_of_another_checkpoint_is_refused(refining, editor, found):
    without = editor.invert(photo())
    assert without.features == ()
    with pytest.raises(UsageError, match="content maps.*refine=False"):
        refining.edit(without, smile=1.0)
    refining.edit(without, smile=1.0, refine=False)
    # A code alone has no photograph to keep.
    refining.edit(Inversion(latents=without.latents), smile=1.0)


def test_inversions_that_do_not_belong_are_refused(editor, found):
    one, other = editor.invert(photo()), editor.invert(photo(seed=1))
    with pytest.raises(UsageError, match="different photographs"):
        editor.edit([one, other], smile=1.0)
    with pytest.raises(UsageError, match="edit_batch"):
        editor.edit([photo(), photo()], smile=1.0)
    with pytest.raises(UsageError, match="edit_batch"):
        editor.edit([], smile=1.0)
    with pytest.raises(UsageError, match="same checkpoint"):
        editor.edit(Inversion(latents=torch.zeros(ROWS + 2, DIM)), smile=1.0)


@pytest.mark.parametrize(
    "option",
    [{"faces": "all"}, {"faces": [(1, 2, 30, 40)]}, {"aligned": True}, {"landmarks": [(0, 0)] * 5}, {"landmark_predictor": "f"},
     {"steps": 5}],
)  # fmt: skip
def test_what_an_inversion_has_already_is_not_asked_for_again(editor, found, option):
    inversion = editor.invert(photo())
    with pytest.raises(UsageError, match="give .* to invert"):
        editor.edit(inversion, smile=1.0, **option)
    editor.edit(inversion, smile=1.0, faces="largest", aligned=False, steps=0, progress=print)


def test_inversions_of_one_call_share_no_memory(skinned, found):
    found[:] = [Face(box, 1.0) for box in BOXES[:2]]
    for inversion in skinned.invert(photo(), faces="all"):
        for tensor in (inversion.crop, inversion.skin, inversion.hair):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_default_device_of_the_callers_changes_nothing(refining, found, tmp_path):
    folder = refining.save_pretrained(tmp_path / "it", dtype=torch.float32)
    picture = photo()
    before = FaceEditor.from_pretrained(folder).edit(picture, smile=1.0)
    torch.set_default_device("meta")
    try:
        editor = FaceEditor.from_pretrained(folder)
        assert editor.device == torch.device("cpu")
        edits = [editor.edit(editor.invert(picture), smile=1.0), *editor.edit_batch([picture], smile=1.0)]
    finally:
        torch.set_default_device(None)
    assert all(np.array_equal(edit, before) for edit in edits)


def test_an_editor_made_in_inference_mode_takes_steps(editor, found, tmp_path):
    folder = editor.save_pretrained(tmp_path / "it")
    with torch.inference_mode():
        made = FaceEditor.from_pretrained(folder).to(dtype=torch.float32)
    made.invert(photo(), steps=1)


# Refining


def test_refining_lowers_the_error_and_reports_every_step(editor, found):
    reports = []
    rough = editor.invert(photo())
    fine = editor.invert(photo(), steps=20, progress=lambda *report: reports.append(report))
    assert [(step, steps) for step, steps, _ in reports] == [(i + 1, 20) for i in range(20)]
    losses = [loss for _, _, loss in reports]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]

    def error(inversion):
        preview = editor._generator.preview(inversion.latents[None]) / 2 + 0.5
        return F.mse_loss(preview, F.interpolate(inversion.crop[None], preview.shape[-1], mode="area"))

    assert error(fine) < 0.9 * error(rough)
    assert not fine.latents.requires_grad


def test_refining_works_where_the_caller_has_switched_gradients_off(editor, found):
    expected = editor.invert(photo(), steps=2).latents
    with torch.no_grad():
        assert torch.equal(editor.invert(photo(), steps=2).latents, expected)
    with torch.inference_mode():
        assert torch.equal(editor.invert(photo(), steps=2).latents, expected)


@pytest.mark.parametrize("steps", [-1, 1.5, True, "3"])
def test_a_number_of_steps_that_is_none_is_refused(editor, found, steps):
    with pytest.raises(UsageError, match="steps"):
        editor.invert(photo(), steps=steps)


# StyleGAN2


def test_a_stylegan2_checkpoint_inverts_refines_and_edits(found, tmp_path):
    made = make_stylegan2_editor()
    folder = made.save_pretrained(tmp_path / "stylegan2", dtype=torch.float32)
    editor = FaceEditor.from_pretrained(folder)
    assert editor.config == made.config
    assert editor._generator.options == made._generator.options
    assert "stylegan2" in repr(editor) and editor.resolution == SIZE

    losses = []
    inversion = editor.invert(photo(), steps=10, progress=lambda step, steps, loss: losses.append(loss))
    assert inversion.latents.shape == (10, DIM)
    assert losses[-1] < losses[0]
    result = editor.edit(inversion, smile=1.0, return_result=True)
    assert levels_apart(result.image, made.edit(inversion, smile=1.0)) <= 1
    assert not np.array_equal(result.image, photo())
    assert np.array_equal(editor.edit(inversion, smile=0.0), photo())
    preview = editor.edit(inversion, smile=1.0, preview=True, return_result=True)
    assert preview.faces[0].output.shape == (3, SIZE // 2, SIZE // 2)
    assert not np.array_equal(preview.image, photo())
    half = editor.to(dtype=torch.bfloat16).edit(inversion, smile=1.0)
    assert np.abs(half.astype(int) - result.image).mean() < 2.0  # grey levels


@pytest.mark.parametrize("options", [{"depth": 3}, {"size": 100}, {"channels": [16]}], ids=str)
def test_options_that_a_stylegan2_does_not_take_are_refused(tmp_path, options):
    folder = make_stylegan2_editor().save_pretrained(tmp_path / "stylegan2")
    reconfigure(folder, lambda config: config["generator"]["options"].update(options))
    with pytest.raises(ConfigError, match="stylegan2 options"):
        FaceEditor.from_pretrained(folder)


# Preview


def test_a_preview_of_an_inversion_needs_no_full_pass(editor, found):
    inversion = editor.invert(photo())
    with counted(editor) as counts:
        result = editor.edit(inversion, smile=1.0, preview=True, return_result=True)
    assert counts.full == 0 and counts.encoder == 0
    assert 1 <= counts.preview <= 2
    assert result.image.shape == photo().shape
    assert not np.array_equal(result.image, photo())
    assert result.faces[0].output.shape == (3, SIZE // 2, SIZE // 2)
    assert np.array_equal(editor.edit(inversion, smile=0.0, preview=True), photo())


# Which faces


def test_all_faces_of_a_photo(editor, found):
    found[:] = [Face(box, 1.0) for box in BOXES]
    inversions = editor.invert(photo(), faces="all")
    assert [one.box for one in inversions] == BOXES
    assert [one.index for one in inversions] == [0, 1, 2]
    with counted(editor) as counts:
        result = editor.edit(photo(), smile=1.0, faces="all", return_result=True)
    assert (counts.encoder, len(result.faces)) == (1, 3)
    assert np.array_equal(editor.edit(inversions, smile=1.0), result.image)
    # Each face was changed, each inside its own crop only.
    for inversion, box in zip(inversions, BOXES, strict=True):
        alone = editor.edit(inversion, smile=1.0)
        x, y = round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2)
        assert (alone != photo())[y - 5 : y + 5, x - 5 : x + 5].any()
    assert isinstance(editor.invert(photo(), faces="all"), list)


def test_one_face_by_its_index(editor, found):
    found[:] = [Face(box, 1.0) for box in BOXES]
    assert editor.invert(photo()).box == BOXES[0]
    assert editor.invert(photo(), faces="largest").box == BOXES[0]
    assert editor.invert(photo(), faces=1).box == BOXES[1]
    assert editor.invert(photo(), faces=-1).box == BOXES[2]
    with pytest.raises(FaceSelectionError, match="no face 3"):
        editor.invert(photo(), faces=3)


def test_boxes_in_place_of_detection(editor, no_detector):
    inversions = editor.invert(photo(), faces=BOXES[1:])
    assert [one.box for one in inversions] == BOXES[1:]
    assert len(editor.invert(photo(), faces=BOXES[:1])) == 1  # a list for a list
    result = editor.edit(photo(), smile=1.0, faces=BOXES[1:], return_result=True)
    assert len(result.faces) == 2
    with pytest.raises(FaceSelectionError, match="outside"):
        editor.edit(photo(), smile=1.0, faces=[(500, 500, 600, 600)])


def test_an_aligned_crop_is_taken_whole(editor, no_detector):
    image = photo(SIZE, SIZE)
    inversion = editor.invert(image, aligned=True)
    assert inversion.frame is None and inversion.box is None
    torch.testing.assert_close(inversion.crop, torch.tensor(image).permute(2, 0, 1) / 255)
    result = editor.edit(image, smile=1.0, aligned=True, return_result=True)
    edited = (result.faces[0].output * 255).round().byte().permute(1, 2, 0).numpy()
    # The border too: there are no surroundings to blend into.
    assert levels_apart(result.image, edited) <= 1
    assert editor.edit(photo(100, 100), smile=1.0, aligned=True).shape == (100, 100, 3)
    with pytest.raises(UsageError, match="square"):
        editor.edit(photo(), smile=1.0, aligned=True)


@pytest.mark.parametrize("count", [5, 68])
def test_landmarks_of_the_callers_own(editor, no_detector, count):
    points = LANDMARKS
    if count == 68:
        points = np.zeros((68, 2))
        points[36:42], points[42:48], points[48], points[54] = LANDMARKS[[0, 1, 3, 4]]
    inversion = editor.invert(photo(), landmarks=points)
    assert inversion.frame == frame_from_landmarks(points)
    assert inversion.box is None
    edited = editor.edit(photo(), smile=1.0, landmarks=points)
    assert np.array_equal(edited, editor.edit(inversion, smile=1.0))


def test_landmarks_and_an_aligned_crop_exclude_each_other(editor):
    with pytest.raises(UsageError, match="aligned"):
        editor.edit(photo(64, 64), smile=1.0, aligned=True, landmarks=LANDMARKS)


def test_a_picture_without_a_face_is_named(editor, found, tmp_path):
    found.clear()
    path = as_path(photo(), tmp_path)
    with pytest.raises(NoFaceError, match="photo.png"):
        editor.edit(path, smile=1.0)
    with pytest.raises(NoFaceError, match="photo.png"):
        editor.edit_batch([path], smile=1.0)


def test_pictures_that_cannot_be_read_are_refused(editor, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match="empty.jpg"):
        editor.edit(tmp_path / "empty.jpg", smile=1.0)
    with pytest.raises(ImageNotFoundError, match="nowhere.jpg"):
        editor.edit(tmp_path / "nowhere.jpg", smile=1.0)
    with pytest.raises(UsageError, match="no picture"):
        editor.edit(42, smile=1.0)


# Batches


def test_a_batch_keeps_its_order_and_equals_single_edits(editor, found):
    pictures = [photo(96, 128, seed) for seed in (1, 2)] + [Image.fromarray(photo(80, 100, 3))]
    with counted(editor) as counts:
        batch = editor.edit_batch(pictures, smile=1.0)
    assert counts.encoder == 1
    assert isinstance(batch[2], Image.Image) and batch[2].size == (100, 80)
    for edited, picture in zip(batch, pictures, strict=True):
        alone = editor.edit(picture, smile=1.0)
        assert levels_apart(edited, alone) <= 1  # batches round differently
        assert levels_apart(edited, picture) > 10


def test_a_batch_with_several_faces_in_a_photo(editor, found):
    found[:] = [Face(box, 1.0) for box in BOXES[:2]]
    results = editor.edit_batch([photo(), photo(seed=1)], {"age": 1.0}, faces="all", return_result=True)
    assert [len(result.faces) for result in results] == [2, 2]
    assert levels_apart(results[1].image, editor.edit(photo(seed=1), age=1.0, faces="all")) <= 1


def test_a_batch_in_one_tensor(editor):
    batch = torch.stack([torch.tensor(photo(64, 64, seed)).permute(2, 0, 1) / 255 for seed in (1, 2)])
    edited = editor.edit_batch(batch, smile=1.0, aligned=True)
    assert [tuple(one.shape) for one in edited] == [(3, 64, 64)] * 2
    assert editor.edit_batch([], smile=1.0) == []
    with pytest.raises(UsageError, match="list"):
        editor.edit_batch(photo(), smile=1.0)
    with pytest.raises(UsageError, match="picture 1 of the list"):
        editor.edit_batch([photo(64, 64), photo(64, 60)], smile=1.0, aligned=True)


# Strengths


def test_an_unknown_attribute_is_refused_before_any_work(editor, no_detector):
    for edit in (editor.edit, lambda image, **kw: editor.edit_batch([image], **kw)):
        with pytest.raises(UnknownAttributeError, match="'smile'") as caught:
            edit("nowhere.jpg", smiel=1.0)
        assert caught.value.suggestions[0] == "smile"


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, "1", None, True])
def test_a_strength_must_be_a_finite_number(editor, no_detector, strength):
    with pytest.raises(StrengthError, match="smile"):
        editor.edit("nowhere.jpg", smile=strength)


def test_names_aliases_and_both_ways_of_giving_strengths(editor, found):
    inversion = editor.invert(photo())
    expected = editor.edit(inversion, smile=1.0)
    assert np.array_equal(editor.edit(inversion, {"Smiling": 1}), expected)
    assert np.array_equal(editor.edit(inversion, happy=np.float32(1)), expected)
    for strengths, named in (({"smile": 1.0}, {"smile": 1.0}), ({"smile": 1.0}, {"happy": 0.5})):
        with pytest.raises(UsageError):
            editor.edit(inversion, strengths, **named)


def test_the_editor_says_what_it_is(editor):
    assert list(editor.attributes) == list(RANGES)
    assert editor.attributes["age"].range == (-1.5, 1.5)
    assert (editor.resolution, editor.device, editor.dtype) == (SIZE, torch.device("cpu"), torch.float32)
    assert editor.config.licence == "test"
    assert "mobile_stylegan" in repr(editor) and "smile" in repr(editor)


# Threads, devices, types


def test_four_threads_share_one_editor(editor, found):
    inversion = editor.invert(photo())
    jobs = [
        (image, {"smile": strength})
        for strength in (-1.0, 0.5, 1.0, 1.5)
        for image in (inversion, photo(), photo(seed=1))
    ]
    expected = [editor.edit(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for edited, one in zip(pool.map(lambda job: editor.edit(*job), jobs), expected, strict=True):
            assert np.array_equal(edited, one)


def test_a_moved_editor_is_another_one(editor, found):
    expected = editor.edit(photo(), smile=1.0)
    half = editor.to(dtype=torch.bfloat16)
    assert (half.dtype, editor.dtype) == (torch.bfloat16, torch.float32)
    difference = np.abs(half.edit(photo(), smile=1.0).astype(int) - expected)
    assert difference.mean() < 2.0  # grey levels
    same = editor.to("cpu")
    assert same is not editor
    assert levels_apart(same.edit(photo(), smile=1.0), expected) <= 1
    assert np.array_equal(editor.edit(photo(), smile=1.0), expected)


def test_devices_and_types_that_do_not_suit_are_refused(editor):
    with pytest.raises(UsageError, match="float16"):
        editor.to(dtype=torch.float16)
    with pytest.raises(UsageError, match="dtype"):
        editor.to(dtype=torch.int8)
    with pytest.raises(UsageError, match="device"):
        editor.to("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cuda"):
            editor.to("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_picture(editor, found):
    expected = editor.edit(photo(), smile=1.0)
    moved = editor.to("cuda")
    assert moved.device.type == "cuda"
    assert np.abs(moved.edit(photo(), smile=1.0).astype(int) - expected).mean() < 0.5
    tensor = torch.tensor(photo()).permute(2, 0, 1).cuda()
    assert moved.edit(tensor, smile=1.0).device.type == "cuda"


# Checkpoints


@pytest.fixture
def saved(editor, tmp_path):
    return editor.save_pretrained(tmp_path / "checkpoint", dtype=torch.float32)


def test_a_saved_editor_comes_back_the_same(editor, found, saved):
    loaded = FaceEditor.from_pretrained(saved)
    assert loaded.config == editor.config
    for strengths in ({"smile": 1.0}, {"old": -1.0}):
        assert levels_apart(loaded.edit(photo(), strengths), editor.edit(photo(), strengths)) <= 1
    assert (saved / "README.md").read_text() == "# Tiny\n"
    for name, tensor in loaded._generator.state_dict().items():
        assert torch.equal(tensor, editor._generator.state_dict()[name]), name


def test_weights_are_stored_as_float16_unless_asked_otherwise(editor, found, tmp_path):
    folder = editor.save_pretrained(tmp_path / "half")
    stored = load_file(folder / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    loaded = FaceEditor.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    difference = np.abs(loaded.edit(photo(), smile=1.0).astype(int) - editor.edit(photo(), smile=1.0))
    assert difference.mean() < 0.5


def test_a_checkpoint_is_never_overwritten_unasked(editor, saved):
    with pytest.raises(OutputExistsError):
        editor.save_pretrained(saved)
    editor.save_pretrained(saved, overwrite=True, dtype=torch.float32)


def test_a_checkpoint_goes_to_the_hub_and_back(editor, saved, tmp_path):
    image = photo(64, 64)
    np.save(tmp_path / "image.npy", image)
    client = """
import sys
import numpy as np
from faceedit import FaceEditor
editor = FaceEditor.from_pretrained("me/tiny", revision="main")
image = np.load(sys.argv[1] + "/image.npy")
np.save(sys.argv[1] + "/edited.npy", editor.edit(image, smile=1.0, aligned=True))
"""
    with HubServer() as server:
        server.add("me/tiny", saved)
        done = run_client(client, tmp_path / "home", server.url, str(tmp_path))
    assert done.returncode == 0, done.stderr
    edited = np.load(tmp_path / "edited.npy")
    assert levels_apart(edited, editor.edit(image, smile=1.0, aligned=True)) <= 1
    assert levels_apart(edited, image) > 10


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        FaceEditor.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFoundError, match="config.json"):
        FaceEditor.from_pretrained(tmp_path)


def test_a_truncated_checkpoint(saved):
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        FaceEditor.from_pretrained(saved)


@pytest.mark.parametrize("name", ["generator.mean_latent", "encoder.to_base.bias", "frame_net.mesh.points.bias"])
def test_a_missing_tensor_is_named(saved, name):
    rewrite(saved, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=name):
        FaceEditor.from_pretrained(saved)


@pytest.mark.parametrize("name", ["generator.surprise", "encoder.surprise", "frame_net.surprise", "surprise"])
def test_an_unknown_tensor_is_named(saved, name):
    rewrite(saved, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=name):
        FaceEditor.from_pretrained(saved)


def test_directions_that_the_config_does_not_know(saved):
    rewrite(saved, lambda tensors: tensors.update({"directions.hat": torch.zeros(ROWS, DIM)}))
    with pytest.raises(CheckpointError, match="hat"):
        FaceEditor.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c["generator"].update(surprise=1), "generator.surprise"),
        (lambda c: c["generator"].update(name="stylegan9"), "stylegan9"),
        (lambda c: c["generator"]["options"].update(surprise=1), "surprise"),
        (lambda c: c.update(encoder=None), "no encoder"),
        (lambda c: c.pop("generator"), "generator"),
        (lambda c: c.update(format_version=99), "99"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved, change, named):
    reconfigure(saved, change)
    with pytest.raises(ConfigError, match=named):
        FaceEditor.from_pretrained(saved)


def test_without_a_frame_net_crops_and_landmarks_still_work(saved, found):
    reconfigure(saved, lambda config: config["crop"].update(frame_net=None))
    rewrite(saved, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("frame_net.")])
    loaded = FaceEditor.from_pretrained(saved)
    with pytest.raises(UsageError, match="frame net"):
        loaded.edit(photo(), smile=1.0)
    assert loaded.edit(photo(), smile=1.0, landmarks=LANDMARKS).shape == (96, 128, 3)
    assert loaded.edit(photo(64, 64), smile=1.0, aligned=True).shape == (64, 64, 3)
    inversion = loaded.invert(photo(64, 64), aligned=True)
    assert inversion.outline is inversion.eyes is inversion.mouth is None


def test_the_frame_net_says_where_the_crop_lies(editor, found):
    # This one sees the same face in every window, whose frame is as large as the window.
    frame = editor.invert(photo()).frame
    x0, y0, x1, y1 = BOXES[0]
    assert isinstance(frame, CropFrame)
    assert x0 < frame.center[0] < x1 and y0 < frame.center[1] < y1
    assert frame.side == pytest.approx(1.6 * math.sqrt((x1 - x0) * (y1 - y0)), rel=1e-4)


# Encoders of pSp and e4e, which answer once


@pytest.fixture(scope="module", params=["psp", "e4e"])
def other(request):
    return make_editor(request.param)


def test_an_encoder_that_answers_once_is_asked_once(other, found):
    with counted(other) as counts:
        inversion = other.invert(photo())
    assert (counts.encoder, counts.full, counts.preview) == (1, 1, 0)
    crop = inversion.crop[None] * 2 - 1
    latents = other._encoder(crop).latents
    torch.testing.assert_close(inversion.latents, latents[0], rtol=1e-4, atol=1e-4)


def test_its_inversions_are_edited_and_refined(other, found):
    before = other.edit(photo())
    after = other.edit(photo(), smile=1.0)
    assert np.array_equal(before, photo()) and levels_apart(after, before) > 5
    losses = []
    other.invert(photo(), steps=12, progress=lambda step, steps, loss: losses.append(loss))
    assert losses[-1] < losses[0]


def test_it_is_saved_and_comes_back(other, found, tmp_path):
    folder = other.save_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    config = json.loads((folder / "config.json").read_text())
    again = FaceEditor.from_pretrained(folder)
    assert type(again._encoder) is type(other._encoder)
    assert config["encoder"]["name"] == again.config.encoder.name
    assert np.array_equal(again.edit(photo(), smile=1.0), other.edit(photo(), smile=1.0))


def test_encoder_options_that_do_not_fit_are_named(other, tmp_path):
    folder = other.save_pretrained(tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["input_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="input_size of a pSp or e4e encoder must be a power of two from 32, not 48"):
        FaceEditor.from_pretrained(folder)


# Directions of one's own


def hats(rows=ROWS, **options):
    random = torch.Generator().manual_seed(5)
    return Directions({"hat": torch.randn(rows, DIM, generator=random)}, **options)


@pytest.fixture
def hat_file(tmp_path):
    facts = {"aliases": {"hat": ["cap"]}, "ranges": {"hat": (-1, 2)}, "licence": "CC0", "generator": "mobile_stylegan"}
    hats(**facts, descriptions={"hat": "a hat"}, success={"hat": {"left_out_auc": 0.9}}).save(tmp_path / "hat.safetensors")
    return tmp_path / "hat.safetensors"


def test_directions_of_ones_own_are_edited_with_and_listed(editor, found, hat_file):
    before = editor.edit(photo(), smile=1.0)
    more = editor.load_directions(hat_file)
    assert more.attributes["hat"] == AttributeInfo((-1.0, 2.0), ("cap",), "CC0", "a hat", {"left_out_auc": 0.9})
    assert list(more.attributes) == [*RANGES, "hat"]
    inversion = editor.invert(photo())
    edited = more.edit(inversion, cap=1.0, return_result=True).faces[0]
    torch.testing.assert_close(edited.latents, inversion.latents + hats().vectors["hat"])
    # Both editors do what the first one did, and the first knows no hats.
    assert np.array_equal(more.edit(photo(), smile=1.0), before)
    assert np.array_equal(editor.edit(photo(), smile=1.0), before)
    assert "hat" not in editor.attributes and more.generator is editor.generator
    with pytest.raises(UnknownAttributeError):
        editor.edit(photo(), hat=1.0)


def test_directions_of_ones_own_are_saved_with_the_checkpoint(editor, found, hat_file, tmp_path):
    # From a file too: such weights lie otherwise in memory, and sums round otherwise.
    more = FaceEditor.from_pretrained(editor.save_pretrained(tmp_path / "one", dtype=torch.float32)).load_directions(hat_file)
    loaded = FaceEditor.from_pretrained(more.save_pretrained(tmp_path / "more", dtype=torch.float32))
    assert loaded.attributes == more.attributes
    assert loaded.directions.attributes["hat"].success == {"left_out_auc": 0.9}
    assert np.array_equal(loaded.edit(photo(), hat=1.0), more.edit(photo(), hat=1.0))


def test_directions_whose_names_are_taken_need_replace(editor, found):
    grin = Directions({"grin": torch.ones(ROWS, DIM), "age": torch.ones(ROWS, DIM)}, aliases={"grin": ["happy"]})
    with pytest.raises(UsageError, match="age, happy.*replace=True"):
        editor.load_directions(grin)
    more = editor.load_directions(grin, replace=True)
    assert more.attributes["smile"].aliases == ("smiling",)
    assert more.attributes["age"] == AttributeInfo((-1.0, 1.0))
    inversion = editor.invert(photo())
    expected = editor.edit(inversion, smile=1.0)
    assert np.array_equal(more.edit(inversion, smile=1.0), expected)
    assert not np.array_equal(more.edit(inversion, happy=1.0), expected)
    assert editor.attributes["smile"].aliases == ("smiling", "happy")


def test_a_direction_that_takes_a_name_takes_no_content_direction_with_it(refining, found, tmp_path):
    own = refining.directions.vectors
    more = refining.load_directions(Directions({"smile": own["age"], "frown": own["age"]}), replace=True)
    inversion = more.invert(photo())
    smile, frown = (more.edit(inversion, {name: 1.0}, return_result=True).faces[0].refined for name in ("smile", "frown"))
    assert torch.equal(smile, frown)
    # The others are as they were, whatever had been the name's is part of what they are added to.
    age, before = (e.edit(inversion, age=1.0, return_result=True).faces[0].refined for e in (more, refining))
    torch.testing.assert_close(age, before, atol=1e-5, rtol=1e-4)
    assert (age - frown).abs().max() > 1e-3  # it has a content direction
    assert "smile" in refining.config.fusion.attributes and "smile" not in more.config.fusion.attributes
    again = FaceEditor.from_pretrained(more.save_pretrained(tmp_path / "it", dtype=torch.float32))
    refined = again.edit(inversion, smile=1.0, return_result=True).faces[0].refined
    torch.testing.assert_close(refined, smile, atol=1e-5, rtol=1e-4)


def test_directions_of_another_generator_are_refused_by_its_name(editor, tmp_path):
    hats(18, generator="stylegan2").save(tmp_path / "hat.safetensors")
    with pytest.raises(UsageError, match=r"hat.safetensors.*18 rows.*stylegan2.*mobile_stylegan.*8 rows"):
        editor.load_directions(tmp_path / "hat.safetensors")
    with pytest.raises(CheckpointNotFoundError):
        editor.load_directions(tmp_path / "none.safetensors")


def test_without_a_reconstruction_nothing_is_drawn(editor, found):
    with counted(editor) as counts:
        inversion = editor.invert(photo(), reconstruct=False)
    assert inversion.reconstruction is None and counts.full == 0
    assert torch.equal(inversion.latents, editor.invert(photo()).latents)
