"""`evaluate` with a tiny editor: every kind is reached, and the style figures are of the edits it made."""

import json

import pytest
import torch
from tiny_editor import make_editor, make_latent_classifier
from tiny_evaluation import write_networks, write_photos

from faceedit.directions import Directions
from faceedit.editor import FaceEditor
from faceedit.errors import UsageError
from faceedit.train import evaluate, evaluate_style, latent_classifier
from faceedit.train.evaluate_style import GeneratedFaces, Photographs, choose, with_directions


@pytest.mark.parametrize("kind", evaluate.KINDS)
def test_every_kind_has_its_own_help(kind, capsys):
    with pytest.raises(SystemExit) as end:
        evaluate.main([kind, "--help"])
    assert end.value.code == 0 and f"evaluate {kind}" in capsys.readouterr().out


def test_an_unknown_kind_is_a_usage_error(capsys):
    assert evaluate.main(["speed"]) == 2
    assert "'speed'" in (text := capsys.readouterr().err) and "inversion" in text
    assert evaluate.main([]) == 2
    assert evaluate.main(["--help"]) == 0


@pytest.fixture(scope="module")
def editor():
    return make_editor()


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 2)


def test_generated_faces_follow_their_seed_and_their_directions(editor):
    directions = Directions({"smile": torch.randn(8, 24)})
    faces, again, other = (GeneratedFaces(editor._generator, directions, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(faces.latents, again.latents) and not torch.equal(faces.latents, other.latents)
    plain = faces.draw([0, 2])
    assert plain.shape == (2, 3, 256, 256) and plain.abs().max() <= 1
    torch.testing.assert_close(plain, faces.draw([0, 2], "smile", 0.0))
    assert (faces.draw([0, 2], "smile", 1.0) - plain).abs().mean() > 1e-3
    assert torch.equal(plain[1], faces.draw([2])[0])
    training = evaluate_style.mixed_latents(editor._generator, 3, seed=0, truncation=(0.6, 1.0), mixing=0.0)
    assert not torch.allclose(faces.latents, training)


def test_generated_faces_are_moved_by_their_own_steps(editor):
    classifier = make_latent_classifier()
    faces = GeneratedFaces(editor.generator, editor.directions, 2, 0, known=classifier)
    plain = GeneratedFaces(editor.generator, editor.directions, 2, 0)
    for row in range(2):
        step = classifier.step(faces.latents[row], editor.directions.vectors["smile"], "smile", -1)
        assert step != 1.0
        assert torch.equal(faces.draw([row], "smile", -0.5), plain.draw([row], "smile", -0.5 * step))
    assert torch.equal(faces.draw([0], "beard", 1.0), plain.draw([0], "beard", 1.0))  # an attribute that it does not know


def test_photographs_are_edited_as_the_editor_does(editor, photos):
    faces = Photographs(editor, photos)
    assert faces.n == 2 and not faces.missed
    edited = faces.draw([1], "age", 1.0)
    direct = editor.edit(photos / "1.png", age=1.0, aligned=True, preview=True, return_result=True).faces[0]
    small = torch.nn.functional.interpolate(direct.edited[None], (256, 256), mode="bilinear")
    torch.testing.assert_close(edited, small * 2 - 1, atol=1e-5, rtol=0)
    assert set(faces.edited) == {(1, "age")} and faces.edited[1, "age"].dtype == torch.uint8
    faces.draw([0], "age", -1.0)
    assert set(faces.edited) == {(1, "age")}  # the grid shows +1 only


def test_other_directions_take_the_place_of_the_editors(editor):
    replaced = with_directions(editor, Directions({"bangs": torch.ones(8, 24)}, ranges={"bangs": (-2, 2)}))
    assert list(replaced.attributes) == ["bangs"] and replaced.attributes["bangs"].range == (-2, 2)
    assert list(editor.attributes) == ["smile", "age", "gender", "glasses", "beard"]
    stepping = editor.with_latent_classifier(make_latent_classifier())
    assert with_directions(stepping, editor.directions).latent_classifier is None
    assert with_directions(editor, editor.directions, stepping.latent_classifier).latent_classifier is not None


def test_only_attributes_that_the_judge_can_see_are_chosen():
    directions = Directions({"smile": torch.ones(1, 1), "freckles": torch.ones(1, 1)})
    assert choose(directions, ["happy"]) == ["smile"]
    with pytest.raises(UsageError, match="freckles.*--attributes"):
        choose(directions, None)


@pytest.fixture
def networks(tmp_path):
    return write_networks(tmp_path)


def test_the_command_measures_both_kinds_of_faces_and_draws(editor, photos, networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FaceEditor, "from_pretrained", lambda checkpoint: editor)
    monkeypatch.setattr(evaluate_style, "SIZE", 64)
    sparse = torch.zeros(8, 24)
    sparse[3, :2] = 2.0
    directions = Directions({"smile": sparse, "beard": torch.ones(8, 24)}, ranges={"smile": (-1.5, 2.5)})
    directions.save(tmp_path / "d.safetensors")
    latent_classifier.save(make_latent_classifier(("smile",)), tmp_path / "steps.safetensors")
    out = tmp_path / "out"
    threads = torch.get_num_threads()
    try:
        arguments = [*networks, f"--directions={tmp_path / 'd.safetensors'}", f"--without={tmp_path / 'd.safetensors'}",
                     f"--latent-classifier={tmp_path / 'steps.safetensors'}",
                     "--faces=5", "--looks=3", f"--photos={photos}", f"--out={out}", "--figure"]  # fmt: skip
        assert evaluate.main(["style", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    judge = "efficientnet-lite0, half B, seed 7"
    for said in ("n = 5", "n = 2", "64 px", "pixels in [0, 1]", "alexnet", "DlibFaceNet", judge, "2^31 + 0", "each face's own length"):
        assert said in text, said
    result = json.loads((out / "style.json").read_text())
    assert result["ranges"]["smile"] == [-1.5, 2.5] and result["first_seed"] == 2**31
    smile = result["generated"]["attributes"]["smile"]
    assert smile["non-zero"]["value"] == pytest.approx(2 / 192, abs=1e-4)
    assert smile["L2"]["n"] == 3 and result["photographs"]["attributes"]["smile"]["L2"]["n"] == 2
    assert set(result["photographs"]["effects"]["smile"]) == {"smile", "beard"}
    assert {path.name for path in out.iterdir()} == {"style.json", "directions.png", "photographs_0.jpg"}


def test_nothing_to_measure_is_refused(networks, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["style", *networks, "--latent-classifier=steps.safetensors", f"--out={tmp_path}"])
    assert "--directions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["style", *networks, "--faces=0", f"--out={tmp_path}"])
    assert "--photos" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["style", *networks, "--seed", str(2**31), f"--out={tmp_path}"])
    assert "--seed" in capsys.readouterr().err
