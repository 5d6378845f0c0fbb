"""`evaluate content` with a tiny editor: its pictures are those that the editor makes, and it says what they are."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_editor import make_editor
from tiny_evaluation import write_networks, write_photos

from faceedit.editor import FaceEditor
from faceedit.errors import UsageError
from faceedit.models.fusion import FusionGenerator
from faceedit.train import evaluate, evaluate_content, evaluate_inversion
from faceedit.train.checkpoint import save_tensors
from faceedit.train.comparison import STYLE, UNEDITED
from faceedit.train.evaluate_content import OUTPUT, REFINED, pairs, photographs, with_run
from faceedit.train.evaluate_style import FIRST_SEED
from faceedit.train.synthetic import mixed_latents


@pytest.fixture(scope="module")
def editor():
    return make_editor(content=True)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(evaluate_inversion, "SIZE", 64)
    monkeypatch.setattr(evaluate_content, "SIZE", 64)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", 3)


@pytest.fixture
def run(tmp_path, editor):
    """A content run of another shape, without relevance maps."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(5)
    options = {"levels": [2], "widths": [8], "follow": True, "relevance": False}
    fusion = FusionGenerator(editor.generator, editor.encoder, ("smile",), **options)
    torch.nn.init.normal_(fusion.content.extractors[0].leave.weight, std=0.3)
    save_tensors(fusion.state_dict(), folder / "content.safetensors")
    (folder / "recipe.json").write_text(json.dumps(options))
    return folder


def test_photographs_are_drawn_as_the_editor_draws_them(editor, photos, run):
    faces, tiles, missed = photographs({"": editor, "other": with_run(editor, run)}, photos, ["smile", "beard"], limit=2)
    assert faces.inputs.shape == (2, 3, 64, 64) and not missed and not faces.truth
    assert faces.names(UNEDITED) == [STYLE, REFINED, "other"]
    assert faces.names("smile") == [STYLE, REFINED, OUTPUT, "other", "other, output"]

    path = photos / "1.png"
    plain = editor.edit(path, smile=1.0, aligned=True, refine=False, return_result=True).faces[0]
    fused = editor.edit(path, smile=1.0, aligned=True, return_result=True).faces[0]
    expected = {
        (STYLE, UNEDITED): plain.reconstruction, (REFINED, UNEDITED): fused.reconstruction,
        (STYLE, "smile"): plain.edited, (REFINED, "smile"): fused.refined, (OUTPUT, "smile"): fused.output,
    }  # fmt: skip
    for key, picture in expected.items():
        torch.testing.assert_close(faces.made[key][1], picture, atol=1e-5, rtol=0)
    torch.testing.assert_close(faces.inputs[1], fused.crop)
    other = with_run(editor, run / "content.safetensors").edit(path, smile=1.0, aligned=True, return_result=True).faces[0]
    torch.testing.assert_close(faces.made["other", "smile"][1], other.refined, atol=1e-5, rtol=0)
    torch.testing.assert_close(faces.made["other, output", "smile"][1], other.output, atol=1e-5, rtol=0)
    assert (other.refined - fused.refined).abs().max() > 1e-3
    assert set(tiles[1]) == {UNEDITED, "smile", "beard"} and tiles[1]["smile"].shape == (3, 320, 320)
    shown = F.interpolate(fused.output[None], (320, 320), mode="bilinear", antialias=True)[0]
    assert (tiles[1]["smile"] / 255 - shown).abs().max() < 0.003


@pytest.mark.parametrize("preview", [False, True])
def test_pairs_know_their_true_edit(editor, preview):
    faces = pairs(editor, 2, ["age"], seed=3, preview=preview)
    codes = mixed_latents(editor.generator, 2, seed=FIRST_SEED + 3, truncation=(0.6, 1.0), mixing=0.0)
    render = editor.generator.preview if preview else editor.generator
    with torch.no_grad():
        for pictures, latents in ((faces.inputs, codes), (faces.truth["age"], codes + editor.directions.vectors["age"])):
            expected = F.interpolate((render(latents).clamp(-1, 1) + 1) / 2, (64, 64), mode="area")
            torch.testing.assert_close(pictures, expected, atol=1e-5, rtol=0)
    made = editor.edit(faces.inputs[1], age=1.0, aligned=True, preview=preview, return_result=True).faces[0].refined
    torch.testing.assert_close(faces.made[REFINED, "age"][1], F.interpolate(made[None], (64, 64), mode="area")[0], atol=1e-5, rtol=0)
    assert set(faces.made) == {(b, n) for n in ("age", UNEDITED) for b in (STYLE, REFINED, OUTPUT)} - {(OUTPUT, UNEDITED)}


@pytest.mark.parametrize(("sheet", "tile", "files"), [(["--sheet"], 32, [3]), (["--sheet", "32"], 20, [2, 1])])
def test_the_command_measures_and_draws(editor, photos, run, tmp_path, monkeypatch, capsys, sheet, tile, files):
    monkeypatch.setattr(FaceEditor, "from_pretrained", lambda checkpoint: editor)
    monkeypatch.setattr(evaluate_content, "LARGE_ROWS", 2)
    monkeypatch.setattr(evaluate_content, "SHEET_TILE", tile)
    out, threads = tmp_path / "out", torch.get_num_threads()
    try:
        arguments = [*write_networks(tmp_path), f"--photos={photos}", "--pairs=2", f"--variant=no map={run}", f"--out={out}",
                     "--attributes", "smile", "age", "--figures", *sheet, "--seed=4"]  # fmt: skip
        assert evaluate.main(["content", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    for said in ("n = 3", "full pass", "64 px", "pixels in [0, 1]", "alexnet", "SSIM 11x11 Gaussian", "DlibFaceNet",
                 "half B, seed 7", "below 0.02", "2^31 + 4", "smile, no map, output", "mean, refined"):  # fmt: skip
        assert said in text, said
    result = json.loads((out / "content.json").read_text())
    found = result["photographs"]
    assert result["attributes"] == ["smile", "age"] and result["variants"] == ["no map"]
    assert set(found["reconstruction"]) == {STYLE, REFINED, "no map"}
    assert set(found["editing"]) == {"smile", "age", "mean"} and set(found["outside"]) == {"smile", "mean"}
    refined = found["editing"]["smile"][REFINED]
    assert set(refined) == {"PSNR", "SSIM", "LPIPS", "L2", "identity"} and refined["L2"]["n"] == 3
    assert refined["L2"]["low"] <= refined["L2"]["value"] <= refined["L2"]["high"]
    assert set(found["turned"]["smile"]["no map"]) == {"turned", "kept"}
    assert "below the bar" in found and result["outside: change below"] == 0.02
    assert result["generated pairs"]["faces"] == 2 and result["generated pairs"]["first_seed"] == 2**31
    drawn = {path.name for path in out.iterdir()}
    assert drawn == {"content.json", "figure_8_0.jpg", "figure_10_smile_0.jpg", "figure_10_age_0.jpg", "figure_11_0.jpg",
                     *(f"sheet_{number}.jpg" for number in range(len(files)))}  # fmt: skip
    for number, rows in enumerate(files):
        sheet = np.asarray(Image.open(out / f"sheet_{number}.jpg"))
        # The photograph and five attributes, three rows in all.
        assert sheet.shape[1] == 32 * 6 and sheet.shape[0] - 32 * rows < 32 and sheet[-32 * rows :].std() > 0


def test_without_a_content_branch_there_is_nothing_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(FaceEditor, "from_pretrained", lambda checkpoint: make_editor())
    with pytest.raises(UsageError, match="the default checkpoint has no content branch.*--content"):
        evaluate.main(["content", "--judge=a", "--identity=b", "--lpips=c", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pairs=0"], "--photos"),
        (["--sheet"], "--photos"),
        (["--photos=a", "--sheet", "2000"], "--sheet"),
        (["--variant=a"], "NAME=RUN"),
        (["--variant=refined=a"], "row already"),
        (["--photos=a", "--variant=a=b", "--variant=a=c"], "one name"),
        (["--photos=a", "--limit=0"], "--limit"),
        (["--seed=-1"], "--seed"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["content", "--judge=a", "--identity=b", "--lpips=c", f"--out={tmp_path}", *options])
    assert said in capsys.readouterr().err
