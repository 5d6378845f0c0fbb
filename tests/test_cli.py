"""The command: what it reads, writes, prints and returns.

The editor behind it is a stand-in whose edits are easy to read off; the last test has a real one.
"""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_editor import make_editor

from faceedit import FaceEditor, __version__, hub, images
from faceedit.cli import main
from faceedit.config import AttributeInfo, GeneratorConfig, ModelConfig
from faceedit.crop import CropFrame, extract
from faceedit.directions import Directions
from faceedit.errors import NoFaceError
from faceedit.results import EditedFace, EditResult, Inversion

ATTRIBUTES = {
    "smile": AttributeInfo(range=(-2.0, 2.0), aliases=("smiling",), description="wider smile"),
    "age": AttributeInfo(range=(0.5, 1.5), aliases=("older",)),
}
CONFIG = ModelConfig(GeneratorConfig("tiny", 32), attributes=ATTRIBUTES, licence="Apache-2.0")
LEVEL = 100  # grey of the pictures below; a black picture has no face


class StandIn:
    """An editor whose smile makes pictures lighter, by 20 levels a step."""

    config, attributes, resolution = CONFIG, ATTRIBUTES, 32
    device, dtype, fusion = torch.device("cpu"), torch.float32, None

    def __init__(self):
        self.loaded, self.options, self.inverted = [], [], 0

    def from_pretrained(self, name_or_path=None, **options):
        self.loaded.append((name_or_path, options))
        return self

    def invert(self, image, *, steps=0, progress=None, **options):
        picture = images.read(image)
        if not picture.pixels.any():
            raise NoFaceError(f"{picture.name}: no face was found")
        self.inverted += 1
        self.options.append({"steps": steps, **options})
        for step in range(steps):
            progress(step + 1, steps, 0.5)
        height, width = picture.pixels.shape[:2]
        frame = CropFrame((width / 2, height / 2), (height / 4, 0.0))
        crop = extract(picture.pixels, frame, self.resolution)
        one = Inversion(
            torch.zeros(2, 4), crop=crop, reconstruction=crop + 0.1, frame=frame, picture=picture
        )
        return [one] if isinstance(options["faces"], list) else one

    def edit(self, image, strengths=None, *, return_result=False, refine=True, explain=False, **options):
        names = {name: torch.zeros(2, 4) for name in ATTRIBUTES}
        checked = Directions(names, aliases={"smile": ("smiling",)}).check(strengths)
        given = image if isinstance(image, Inversion) else self.invert(image, **options)
        inversion = given[0] if isinstance(given, list) else given
        lighter = 20 * checked.get("smile", 0.0)
        crop = inversion.crop
        if inversion.picture is None:
            out = Image.fromarray((crop * 255 + lighter).byte().permute(1, 2, 0).numpy())
        else:
            pixels = np.clip(inversion.picture.pixels + lighter, 0, 255).astype(np.uint8)
            out = images.restore(inversion.picture, pixels)
        latents = inversion.latents
        face = EditedFace(crop, crop, crop, None, crop, crop[0], (), inversion.frame, latents, checked, checked)
        return EditResult(out, (face,)) if return_result else out


@pytest.fixture
def editor(monkeypatch, tmp_path):
    stand_in = StandIn()
    monkeypatch.setattr("faceedit.editor.FaceEditor.from_pretrained", stand_in.from_pretrained)
    monkeypatch.chdir(tmp_path)
    return stand_in


def draw(path, level=LEVEL, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)
    return path


def grey(path):
    """The one grey of a picture."""
    with Image.open(path) as image:
        (low, high), *_ = image.convert("RGB").getextrema()
    assert high - low <= 1
    return high


@pytest.fixture
def photo(editor, tmp_path):
    return draw(tmp_path / "photo.png")


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


# One picture


@pytest.mark.parametrize(
    "arguments",
    [
        ["photo.png", "smile=1", "-o", "out.png"],
        ["-o", "out.png", "smile=1", "photo.png"],
        ["photo.png", "-o", "out.png", "smile=1"],
        ["photo.png", "--set", "smile=1", "-o", "out.png"],
        ["--set", "smile=1", "photo.png", "-o", "out.png", "age=2"],
    ],
)
def test_edit_writes_the_edited_picture(photo, arguments, capsys):
    assert main(["edit", *arguments]) == 0
    assert grey("out.png") == LEVEL + 20
    out, err = capsys.readouterr()
    assert out.startswith("photo.png -> out.png (") and err == ""


def test_options_reach_the_editor(photo, editor):
    options = ["--checkpoint", "some/where", "--revision", "v1", "--device", "cpu", "--steps", "3"]
    command = ["edit", "photo.png", "smile=1", "--landmark-predictor", "68.dat", "-o"]
    assert main([*command, "a.png", *options, "--faces", "-1"]) == 0
    assert editor.loaded == [("some/where", {"revision": "v1", "device": "cpu"})]
    (given,) = editor.options
    assert (given["faces"], given["steps"], given["aligned"]) == (-1, 3, False)
    assert str(given["landmark_predictor"]) == "68.dat"
    boxes = ["--box", "-1", "2", "30", "40", "--box", "5", "6", "17.5", "18"]
    assert main(["edit", "photo.png", "smile=1", "-o", "b.png", *boxes]) == 0
    assert editor.options[-1]["faces"] == [[-1, 2, 30, 40], [5, 6, 17.5, 18]]


def test_an_existing_output_is_left_alone(photo, editor, tmp_path, capsys):
    out = draw(tmp_path / "out.png", 7)
    assert main(["edit", "photo.png", "smile=1", "-o", "out.png"]) == 1
    assert grey(out) == 7
    assert editor.inverted == 0  # refused before the work
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["edit", "photo.png", "smile=1", "-o", "out.png", "--overwrite"]) == 0
    assert grey(out) == LEVEL + 20


def test_quiet_and_json(photo, capsys):
    assert main(["edit", "photo.png", "smile=1", "-o", "a.png", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["edit", "photo.png", "smile=1", "-o", "b.png", "--json"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert line.pop("seconds") >= 0
    assert line == {"input": "photo.png", "output": "b.png", "faces": 1, "error": None}


def test_no_face_is_3(editor, tmp_path, capsys):
    draw(tmp_path / "wall.png", 0)
    assert main(["edit", "wall.png", "smile=1", "-o", "out.png"]) == 3
    assert capsys.readouterr().err == "faceedit: error: 'wall.png': no face was found\n"
    assert not (tmp_path / "out.png").exists()


def test_a_missing_picture_is_1(editor, capsys):
    assert main(["edit", "gone.png", "smile=1", "-o", "out.png"]) == 1
    assert capsys.readouterr().err == (
        "faceedit: error: There is no file 'gone.png'. Check the path.\n"
    )


# Several pictures


@pytest.fixture
def album(editor, tmp_path):
    for name in ("a.png", "b.jpg", "c.bmp", "deep/a.png", ".hidden.png"):
        draw(tmp_path / "album" / name)
    (tmp_path / "album" / "notes.txt").write_text("not a picture")
    return tmp_path / "album"


def written(folder):
    return sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["album"], ["a.png", "b.jpg", "c.png"]),
        (["album", "-r"], ["a.png", "b.jpg", "c.png", "deep/a.png"]),
        (["album/*.png"], ["a.png"]),
        (["album/[ab].*"], ["a.png", "b.jpg"]),
        (["album/a.png", "album/b.jpg"], ["a.png", "b.jpg"]),
        (["album", "album/a.png"], ["a.png", "b.jpg", "c.png"]),
        (["album", "--suffix", "_smiling"], ["a_smiling.png", "b_smiling.jpg", "c_smiling.png"]),
    ],
)
def test_folders_patterns_and_lists(album, tmp_path, arguments, expected):
    assert main(["edit", *arguments, "smile=1", "-o", "out"]) == 0
    assert written(tmp_path / "out") == expected
    assert all(abs(grey(tmp_path / "out" / name) - LEVEL - 20) <= 1 for name in expected)


def test_suffix_alone_writes_beside_the_inputs(album):
    before = written(album)
    assert main(["edit", "album", "smile=1", "--recursive", "--suffix", "_s"]) == 0
    new = ["a_s.png", "b_s.jpg", "c_s.png", "deep/a_s.png"]
    assert written(album) == sorted(before + new)


def test_a_result_never_takes_the_place_of_another_input(editor, tmp_path, capsys):
    for name in ("a.png", "a_s.png"):
        draw(tmp_path / "album" / name)
    assert main(["edit", "album", "smile=1", "--suffix", "_s", "--overwrite"]) == 2
    assert "original would be lost" in capsys.readouterr().err
    assert grey(tmp_path / "album" / "a_s.png") == LEVEL and len(written(tmp_path / "album")) == 2
    assert main(["edit", "album", "smile=1", "-o", "album", "--overwrite"]) == 0  # each its own
    assert grey(tmp_path / "album" / "a_s.png") == LEVEL + 20


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_run(editor, tmp_path, monkeypatch):
    album = tmp_path / "album"
    for name in ("1 \u5fae\u7b11.png", "2.png"):
        draw(album / name)
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", narrow)
    assert main(["edit", "album", "smile=1", "-o", "out"]) == 0
    assert len(written(tmp_path / "out")) == 2
    assert b"\\u5fae" in narrow.buffer.getvalue()


def test_a_single_input_goes_into_an_existing_folder(photo, tmp_path):
    (tmp_path / "out").mkdir()
    assert main(["edit", "photo.png", "smile=1", "-o", "out"]) == 0
    assert main(["edit", "photo.png", "smile=1", "-o", "new/"]) == 0
    assert written(tmp_path / "out") == written(tmp_path / "new") == ["photo.png"]


def test_the_rest_go_on_after_a_failure_and_the_gravest_code_is_returned(editor, tmp_path, capsys):
    draw(tmp_path / "wall.png", 0)
    draw(tmp_path / "me.png")
    command = ["edit", "wall.png", "me.png", "smile=1", "-o", "out", "--json"]
    assert main(command) == 3
    out, err = capsys.readouterr()
    first, second = lines(out)
    assert first["error"] == {"type": "NoFaceError", "message": "'wall.png': no face was found"}
    assert (first["output"], first["faces"]) == (os.path.join("out", "wall.png"), 0)
    assert (second["error"], second["faces"]) == (None, 1)
    assert err.count("\n") == 1 and "Traceback" not in err
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    assert main(["edit", "broken.png", *command[1:], "--overwrite"]) == 1
    failed = [line["error"] is not None for line in lines(capsys.readouterr().out)]
    assert failed == [True, True, False]


def test_a_pattern_may_match_what_is_no_picture(album, tmp_path, capsys):
    assert main(["edit", "album/*", "smile=1", "-o", "out"]) == 1
    assert "notes.txt" in capsys.readouterr().err
    assert written(tmp_path / "out") == ["a.png", "b.jpg", "c.png"]


def test_a_full_disk_is_an_error_of_one_line(photo, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("faceedit.files.os.replace", full)
    assert main(["edit", "photo.png", "smile=1", "-o", "out.png"]) == 1
    err = capsys.readouterr().err
    assert err == "faceedit: error: photo.png: [Errno 28] No space left on device\n"


# Mistakes in the command


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "COMMAND"),
        ("smile", "invalid choice"),
        ("edit", "required"),
        ("edit photo.png -o out.png", "what to change"),
        ("edit smile=1 -o out.png", "which photographs"),
        ("edit photo.png smile=1", "where results go"),
        ("edit photo.png smile=wide -o out.png", "'smile=wide': a strength is a number"),
        ("edit photo.png smile=nan -o out.png", "finite number"),
        ("edit photo.png smile=1 smile=2 -o out.png", "given twice"),
        ("edit photo.png smile=1 smiling=2 -o out.png", "the same attribute"),
        ("edit photo.png smile=1 -o out.gif", "must end in .jpg"),
        ("edit photo.png smile=1 -o out.png --suffix _x", "--suffix"),
        ("edit photo.png smile=1 --suffix a/b", "--suffix"),
        ("edit photo.png photo.png other.png smile=1 -o out.png", "-o is a folder"),
        ("edit photo.png smile=1 --set smile -o out.png", "NAME=STRENGTH"),
        ("edit photo.png smile=1 --faces most -o out.png", "'most' is none of largest"),
        ("edit photo.png smile=1 --steps -1 -o out.png", "'-1' is no whole number"),
        ("edit photo.png smile=1 --aligned --faces all -o out.png", "not allowed with"),
        ("edit photo.png smile=1 --bright -o out.png", "unrecognized arguments: --bright"),
        ("edit *.tiff smile=1 -o out", "No file matches '*.tiff'"),
        ("edit empty smile=1 -o out", "The folder 'empty' has no pictures. --recursive"),
        ("edit photo.png empty/deep/photo.png smile=1 -o out", "would both become"),
        ("sweep photo.png -o out.png", "which attribute"),
        ("sweep photo.png smile", "-o"),
        ("sweep photo.png smile -o out", "must end in"),
        ("sweep photo.png smile=a,b -o out.png", "'smile=a,b': a strength is a number"),
        ("sweep photo.png smile -o out.png --faces all", "one face"),
        ("sweep photo.png smile -o out.png --size 7", "from 32 to 1024"),
        ("invert photo.png more.png", "unrecognized arguments: more.png"),
        ("invert photo.png --code out.png", "must end in .safetensors"),
        ("invert photo.png --faces all", "one face"),
        ("convert in", "the following arguments are required: OUT"),
        ("convert photo.png out --format stylegan9", "There is no format 'stylegan9'"),
        ("download empty out", "is a folder here already"),
    ],
)
def test_mistakes_are_2_and_nothing_is_written(photo, tmp_path, command, said, capsys):
    draw(tmp_path / "empty" / "deep" / "photo.png")
    before = written(tmp_path)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert said in err and out == ""
    assert "Traceback" not in err
    assert written(tmp_path) == before


@pytest.mark.parametrize(
    "command",
    ["edit photo.png other.png simle=1 -o out", "sweep photo.png simle -o out.png"],
)
def test_an_unknown_attribute_is_2_and_gets_suggestions(photo, editor, command, capsys):
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1  # said once, not once for each input
    assert err.startswith("faceedit: error: Unknown attribute 'simle'. Did you mean 'smile'")
    assert editor.inverted == 0


def test_an_error_that_ends_the_run_is_told_in_json_too(photo, capsys):
    assert main(["edit", "photo.png", "simle=1", "-o", "out.png", "--json"]) == 2
    (line,) = lines(capsys.readouterr().out)
    assert line["error"]["type"] == "UnknownAttributeError"


def test_a_bug_is_one_line_unless_debugging(photo, editor, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("what\nnow")

    monkeypatch.setattr(editor, "edit", broken)
    command = ["edit", "photo.png", "smile=1", "-o", "out.png"]
    assert main(command) == 1
    assert capsys.readouterr().err == (
        "faceedit: error: unexpected RuntimeError: what now (--debug shows where)\n"
    )
    assert main([*command, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(photo, editor, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(editor, "edit", interrupted)
    assert main(["edit", "photo.png", "smile=1", "-o", "out.png"]) == 130
    assert capsys.readouterr().err == "faceedit: interrupted\n"


def test_a_reader_that_has_gone_is_no_traceback():
    code = """
import sys, types
from faceedit.cli import commands, main
from faceedit.config import AttributeInfo
known = {"smile": AttributeInfo(range=(-1, 1), description="x" * 100_000)}
commands._load = lambda args: types.SimpleNamespace(attributes=known)
sys.stdin.readline()
sys.exit(main(["attributes"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


# Progress


def test_the_bar_is_for_terminals_only(photo, monkeypatch, capsys):
    command = ["edit", "photo.png", "smile=1", "--steps", "4", "--overwrite", "-o", "out.png"]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "[........................] 0/1 photo.png" in err
    assert "[############............] 0/1 photo.png step 2/4, loss 0.5000" in err
    assert err.endswith("\r\x1b[K")  # taken away in the end
    assert main([*command, "-q"]) == 0
    assert capsys.readouterr().err == ""


# The other commands


@pytest.fixture
def drawn(monkeypatch):
    """The labels of every sheet that is drawn."""
    from faceedit.cli import sheet

    seen, real = [], sheet.draw

    def spy(rows, size):
        seen.extend([label for label, _ in row] for row in rows)
        return real(rows, size)

    monkeypatch.setattr(sheet, "draw", spy)
    return seen


def test_sweep_draws_a_labelled_strip_and_inverts_once(photo, editor, drawn):
    assert main(["sweep", "photo.png", "smile", "-o", "strip.png", "--size", "64"]) == 0
    labels = ["input", "smile -2", "smile -1", "smile 0", "smile +1", "smile +2"]
    assert drawn == [labels]
    assert editor.inverted == 1
    with Image.open("strip.png") as strip:
        assert strip.size == (6 * 64, 64 + 16)
        pixels = np.asarray(strip)
    for i, level in enumerate([100, 60, 80, 100, 120, 140]):
        tile, label = pixels[:64, i * 64 : (i + 1) * 64], pixels[64:, i * 64 : (i + 1) * 64]
        assert (tile == level).all()
        assert label.max() == 255 and label.min() < 128  # dark letters on white
        assert (label[:, [0, -1]] == 255).all()  # which stay within their tile


def test_sweep_takes_strengths_and_several_attributes(photo, editor, drawn, capsys):
    command = ["sweep", "photo.png", "smiling=-0.5,1", "-o", "strip.jpg", "age", "--json"]
    assert main(command) == 0
    assert drawn == [
        ["input", "smiling -0.5", "smiling +1"],
        ["input", "age +0.5", "age +1", "age +1.5"],  # its range does not reach to 0
    ]
    with Image.open("strip.jpg") as strip:
        assert strip.size == (4 * 256, 2 * (256 + 32))
    (line,) = lines(capsys.readouterr().out)
    assert (line["output"], line["faces"], line["error"]) == ("strip.jpg", 1, None)
    assert main(command) == 1  # it exists now
    assert editor.inverted == 1


def test_invert_writes_picture_and_code_and_measures(photo, editor, capsys):
    command = ["invert", "photo.png", "-o", "face.png", "--code", "face.safetensors"]
    assert main([*command, "--box", "1", "2", "30", "40"]) == 0
    # The stand-in's reconstruction is .1 too light everywhere: 20 dB.
    assert "photo.png -> face.png, face.safetensors (PSNR 20.00 dB" in capsys.readouterr().out
    with Image.open("face.png") as face:
        assert face.size == (32, 32)
    assert Inversion.load("face.safetensors").latents.shape == (2, 4)
    os.remove("face.png")
    assert main([*command, "--json"]) == 1  # the code exists: nothing is done
    assert not os.path.exists("face.png") and editor.inverted == 1
    (line,) = lines(capsys.readouterr().out)
    assert line["error"]["type"] == "OutputExistsError"
    assert main(["invert", "photo.png", "--json"]) == 0
    (line,) = lines(capsys.readouterr().out)
    assert (line["output"], line["code"], line["psnr_256"]) == (None, None, 20.0)


def test_a_saved_code_can_be_edited_and_swept(photo, editor, drawn):
    assert main(["invert", "photo.png", "--code", "face.safetensors"]) == 0
    assert main(["edit", "face.safetensors", "smile=1", "-o", "face.png"]) == 0
    assert grey("face.png") == LEVEL + 20
    assert main(["sweep", "face.safetensors", "smile=1", "-o", "strip.png"]) == 0
    assert drawn == [["input", "smile +1"]]
    assert editor.inverted == 1


def test_a_damaged_code_is_1(editor, tmp_path, capsys):
    (tmp_path / "face.safetensors").write_bytes(b"\0" * 20)
    assert main(["sweep", "face.safetensors", "smile", "-o", "strip.png"]) == 1
    assert "truncated or corrupt" in capsys.readouterr().err


def test_attributes(editor, capsys):
    assert main(["attributes"]) == 0
    title, smile, age = capsys.readouterr().out.splitlines()
    assert title.split("  ")[0] == "name"
    assert smile.split() == ["smile", "-2", "to", "+2", "smiling", "wider", "smile"]
    assert age.split() == ["age", "+0.5", "to", "+1.5", "older"]
    assert smile.index("-2") == age.index("+0.5") == title.index("tested range")
    assert main(["attributes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["smile"]["aliases"] == ["smiling"]


def test_info(editor, tmp_path, capsys):
    folder = hub.save_checkpoint(tmp_path / "point", CONFIG, {"a": torch.zeros(250_000)}, "card")
    assert main(["info", "--checkpoint", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["faceedit"] == __version__
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["dlib"] != "not installed"
    assert (facts["checkpoint"], facts["size_mb"]) == (str(folder), 1.0)
    assert (facts["licence"], facts["resolution"], facts["device"]) == ("Apache-2.0", 32, "cpu")
    assert main(["info", "--checkpoint", str(folder)]) == 0
    assert "attributes:  smile, age" in capsys.readouterr().out.splitlines()
    assert main(["info", "--checkpoint", "no/such/folder"]) == 1


def test_download_copies_what_belongs_to_a_checkpoint(editor, tmp_path, monkeypatch, capsys):
    cached = hub.save_checkpoint(tmp_path / "cache", CONFIG, {"a": torch.ones(2)}, "card")
    (cached / "LICENSE").write_text("terms")
    (cached / "evil.pkl").write_bytes(b"never copied")
    asked = []
    monkeypatch.setattr(hub, "resolve", lambda name, revision: asked.append(revision) or cached)
    assert main(["download", "owner/name", "here", "--revision", "v2"]) == 0
    assert asked == ["v2"]
    assert capsys.readouterr().out == "owner/name -> here\n"
    names = ["LICENSE", "README.md", "config.json", "model.safetensors"]
    assert written(tmp_path / "here") == names
    assert hub.load_checkpoint("here")[1]["a"].tolist() == [1, 1]
    assert main(["download", "owner/name", "here"]) == 1
    assert main(["download", "owner/name", "here", "--overwrite"]) == 0
    (cached / "model.safetensors").write_bytes(b"damaged")
    assert main(["download", "owner/name", "there"]) == 1
    assert not (tmp_path / "there").exists()


def test_help_and_version_need_no_torch():
    code = """
import sys
from faceedit.cli import main
print(main(["edit", "--help"]), main(["--version"]), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"faceedit {__version__}" in done.stdout
    assert done.stdout.endswith("0 0 False\n")


def test_a_real_editor_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_editor().save_pretrained("tiny")
    rows = np.arange(96, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(2 * rows, (96, 128, 3)).copy()).save("photo.png")
    real = ["--checkpoint", "tiny", "--json"]
    face = ["--box", "40", "20", "90", "70", *real]
    assert main(["edit", "photo.png", "smile=1", "-o", "a.png", "--steps", "1", *face]) == 0
    assert main(["sweep", "photo.png", "older=-1,0,1", "-o", "b.png", *face]) == 0
    assert main(["invert", "photo.png", "-o", "c.png", "--code", "c.safetensors", *face]) == 0
    assert main(["edit", "c.safetensors", "smile=1", "-o", "d.png", *real]) == 0
    edited, swept, inverted, loaded = lines(capsys.readouterr().out)
    assert edited["faces"] == swept["faces"] == inverted["faces"] == loaded["faces"] == 1
    assert 0 < inverted["psnr_256"] < 100
    sizes = [Image.open(name).size for name in ("a.png", "b.png", "c.png", "d.png")]
    assert sizes == [(128, 96), (4 * 256, 256 + 32), (64, 64), (64, 64)]
    assert Image.open("a.png").tobytes() != Image.open("photo.png").tobytes()
    assert main(["attributes", *real]) == main(["info", *real]) == 0


def test_an_explanation_shows_each_step_of_a_refined_edit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_editor(content=True).save_pretrained("tiny", dtype=torch.float32)
    editor = FaceEditor.from_pretrained("tiny")
    columns = np.arange(64, dtype=np.uint8)[None, :, None]
    crop = np.broadcast_to(3 * columns, (64, 64, 3)).copy()
    Image.fromarray(crop).save("crop.png")
    command = ["edit", "crop.png", "smile=1", "--aligned", "--checkpoint", "tiny"]
    assert main([*command, "-o", "a.png", "--explain", "why.png"]) == 0
    result = editor.edit(crop, smile=1.0, aligned=True, explain=True, return_result=True)
    assert np.array_equal(np.asarray(Image.open("a.png")), result.image)
    why = np.asarray(Image.open("why.png"))
    (face,) = result.faces
    steps = [face.crop, face.reconstruction, face.edited, *face.relevance, face.refined, face.output]
    assert why.shape == (256 + 32, 256 * len(steps), 3)
    for i, step in enumerate(steps):
        tile = why[:256, 256 * i : 256 * (i + 1)]
        scale = 256 // step.shape[-1]
        wanted = (step.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(tile[::scale, ::scale], wanted)
    assert main([*command, "--no-refine", "-o", "b.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("b.png")), editor.edit(crop, smile=1.0, aligned=True, refine=False))
    assert main(["sweep", "crop.png", "smile=1", "--aligned", "--no-refine", "-o", "s.png", "--checkpoint", "tiny"]) == 0
    capsys.readouterr()
    for more, message in (
        (["--no-refine", "-o", "c.png", "--explain", "c2.png"], "no-refine"),
        (["-o", "c.png", "--explain", "c2.txt"], "c2.txt"),
        (["-o", "c.png", "--explain", "why.png"], "why.png"),
        (["-o", "c.png", "--explain", "./c.png", "--overwrite"], "c.png"),
        (["-o", "c.png", "--explain", "crop.png", "--overwrite"], "crop.png"),
    ):
        assert main([*command, *more]) in (1, 2)
        assert message in capsys.readouterr().err
    assert main([*command[:2], "a.png", *command[2:], "-o", "out", "--explain", "c2.png"]) == 2
    assert not (tmp_path / "c.png").exists() and not (tmp_path / "out").exists()
    assert main(["invert", "crop.png", "--aligned", "--checkpoint", "tiny", "--code", "it.safetensors"]) == 0
    for command in (["edit", "it.safetensors", "smile=1", "-o", "d.png"], ["sweep", "it.safetensors", "smile=1", "-o", "d.png"]):
        capsys.readouterr()
        assert main([*command, "--checkpoint", "tiny", "--steps", "3"]) in (1, 2)
        assert "an inversion has its face" in capsys.readouterr().err and not (tmp_path / "d.png").exists()
        assert main([*command, "--checkpoint", "tiny"]) == 0
        (tmp_path / "d.png").unlink()


def test_directions_of_ones_own_go_before_the_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    editor = make_editor()
    editor.save_pretrained("tiny")
    Image.new("RGB", (64, 64), (90, 60, 30)).save("crop.png")
    step = 2 * torch.ones(editor.directions.shape)
    Directions({"hat": step, "smile": -step}).save("own.safetensors")
    Directions({"beanie": step}).save("more.safetensors")
    files = ["--directions", "own.safetensors", "--directions", "more.safetensors", "--checkpoint", "tiny"]
    for name in ("hat", "beanie"):
        assert main(["edit", "crop.png", f"{name}=1", "--aligned", "-o", f"{name}.png", *files]) == 0
    assert main(["edit", "crop.png", "smile=-1", "--aligned", "-o", "smile.png", *files]) == 0
    pictures = {Image.open(f"{name}.png").tobytes() for name in ("hat", "beanie", "smile")}
    assert len(pictures) == 1 and Image.open("crop.png").tobytes() not in pictures
    assert main(["sweep", "crop.png", "hat=-1,1", "--aligned", "-o", "strip.png", *files]) == 0
    capsys.readouterr()
    assert main(["attributes", "--json", *files]) == 0
    assert {"hat", "beanie", "smile", "age"} <= set(json.loads(capsys.readouterr().out))
    assert main(["attributes", "--directions", "none.safetensors", "--checkpoint", "tiny"]) == 1
    assert "none.safetensors" in capsys.readouterr().err
