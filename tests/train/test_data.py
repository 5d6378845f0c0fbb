"""Folders in, faces out: layouts are recognised, crops are where they belong, what is kept is never stale."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tiny_editor import frame_net

from faceedit.crop import CropFrame, extract
from faceedit.errors import DataError, NoFaceError
from faceedit.train import data
from faceedit.train.data import NetFramer, celeba_frame, kept, load_faces, open_faces, open_folder


def picture(path, width=24, height=24, value=None, seed=0):
    """A smooth random picture, or one of a single grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if value is not None:
        image = Image.new("RGB", (width, height), (value, value, value))
    image.save(path)
    return np.array(image)


class Middle:
    """A framer that takes the middle of the given box."""

    key = "middle"

    def __init__(self):
        self.boxes = []

    def __call__(self, pixels, box):
        self.boxes.append(box)
        if box is None:
            raise NoFaceError("no face was found")
        return CropFrame(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), ((box[2] - box[0]) / 2, 0.0))


# --- layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "layout", "frame", "names"),
    [
        (["images1024x1024/00000/00001.png", "LICENSE.txt"], "FFHQ", "whole", ["00000/00001.png"]),
        (["thumbnails128x128/00001.png"], "FFHQ", "whole", ["00001.png"]),
        (["00000/00001.png", "01000/01999.png"], "FFHQ", "whole", ["00000/00001.png", "01000/01999.png"]),
        (["01000/00001.png"], "pictures", "find", ["01000/00001.png"]),
        (["CelebA-HQ-img/0.jpg", "CelebA-HQ-img/10.jpg"], "CelebA-HQ", "whole", ["0.jpg", "10.jpg"]),
        (["celeba_hq/train/female/1.jpg"], "CelebA-HQ", "whole", ["train/female/1.jpg"]),
        (["b.JPG", "sub/a.webp", "notes.md"], "pictures", "find", ["b.JPG", "sub/a.webp"]),
        (["images/1.png"], "pictures", "find", ["images/1.png"]),
    ],
)
def test_layouts_are_recognised(tmp_path, files, layout, frame, names):
    for name in files:
        path = tmp_path / name
        picture(path) if path.suffix.lower() in data.SUFFIXES else path.write_text("")
    folder = open_folder(tmp_path)
    assert (folder.layout, folder.frame, list(folder.names)) == (layout, frame, names)
    assert open_folder(tmp_path, aligned=True).frame == "whole"


def test_celeba_and_its_labels_are_recognised_in_both_forms(tmp_path):
    picture(tmp_path / "a" / "img_align_celeba" / "000001.jpg", 178, 218)
    (tmp_path / "a" / "Anno").mkdir()
    (tmp_path / "a" / "Anno" / "list_attr_celeba.txt").write_text("1\nSmiling\n000001.jpg 1\n")
    picture(tmp_path / "b" / "images" / "000001.jpg", 89, 109)
    (tmp_path / "b" / "attributes.csv").write_text("file,Smiling\n000001.jpg,1\n")
    for name in "ab":
        folder = open_folder(tmp_path / name)
        assert (folder.layout, folder.frame) == ("CelebA", "celeba")
        assert folder.labels.tensor(folder.names).tolist() == [[1]]


def test_labelled_photographs_of_another_size_are_not_taken_for_celeba(tmp_path):
    picture(tmp_path / "images" / "1.jpg", 200, 150)
    (tmp_path / "attributes.csv").write_text("file,Smiling\n1.jpg,1\n")
    folder = open_folder(tmp_path)
    assert folder.frame == "find" and folder.labels.attributes == ("Smiling",)


def test_a_folder_without_pictures_or_labels_is_an_error_of_ours(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        open_folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="No picture"):
        open_folder(tmp_path)
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="no label file"):
        _ = open_folder(tmp_path).labels
    (tmp_path / "index.csv").write_text("file,box\na.png,1 2 3 4\n")
    with pytest.raises(DataError, match="columns file and face_box"):
        open_folder(tmp_path)


# --- crops ------------------------------------------------------------------------------------


def test_aligned_pictures_are_reduced_and_may_have_a_mirrored_margin(tmp_path):
    pixels = picture(tmp_path / "set" / "images1024x1024" / "00000" / "00000.png", 32, 32)
    faces = load_faces(tmp_path / "set", tmp_path / "a.npy", size=16)
    assert faces.pictures.shape == (1, 16, 16, 3) and faces.names == ("00000/00000.png",)
    means = pixels.reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert np.abs(faces.pictures[0] - means).max() < 4
    wide = load_faces(tmp_path / "set", tmp_path / "b.npy", size=40, margin=1.25)
    assert np.abs(wide.pictures[0, 4:36, 4:36].astype(int) - pixels).max() <= 1
    assert np.abs(wide.pictures[0, 3].astype(int) - wide.pictures[0, 4]).max() <= 1  # mirrored at the border


def test_photographs_are_cropped_at_the_face(tmp_path):
    pixels = picture(tmp_path / "set" / "images" / "a.png", 60, 40)
    (tmp_path / "set" / "index.csv").write_text("file,face_box\na.png,30 10 50 30\n")
    faces = load_faces(tmp_path / "set", tmp_path / "a.npy", size=24, margin=1.2, framer=Middle())
    assert np.abs(faces.pictures[0].astype(int) - pixels[8:32, 28:52]).max() <= 1


def test_the_frame_of_a_celeba_picture_scales_with_it():
    small, large = celeba_frame(89, 109), celeba_frame(178, 218)
    assert np.allclose(2 * np.array(small.center), large.center) and 2 * small.side == large.side
    assert small.side == 80
    with pytest.raises(DataError, match="178x218"):
        celeba_frame(178, 178)


def test_a_frame_net_finds_the_frames_of_detected_faces(tmp_path, monkeypatch):
    pixels = picture(tmp_path / "set" / "a.png", 64, 64)
    net = frame_net()
    monkeypatch.setattr(data, "find", lambda pixels: [data_face((20.0, 24.0, 40.0, 44.0))])
    faces = load_faces(tmp_path / "set", tmp_path / "a.npy", size=16, framer=NetFramer(net))
    frame = CropFrame(*net.eval().predict(pixels, (20, 24, 40, 44)))
    expected = extract(pixels, frame, 16).permute(1, 2, 0).mul(255).round().byte().numpy()
    assert np.array_equal(faces.pictures[0], expected)


def data_face(box):
    from faceedit.faces import Face

    return Face(box, 1.0)


# --- damage -----------------------------------------------------------------------------------


def test_damaged_pictures_and_those_without_a_face_are_reported_once_and_skipped(tmp_path, caplog):
    folder = tmp_path / "set"
    for name in ("a.png", "c.png", "d.png"):
        picture(folder / "images" / name, 60, 40)
    (folder / "images" / "b.png").write_bytes((folder / "images" / "a.png").read_bytes()[:60])
    lines = ["file,face_box", *(f"{n}.png,30 10 50 30" for n in "abce")]
    (folder / "index.csv").write_text("\n".join(lines))
    faces = load_faces(folder, tmp_path / "a.npy", size=8, framer=Middle())
    assert faces.names == ("a.png", "c.png") and len(faces) == 2
    assert set(faces.skipped) == {"b.png", "e.png"}
    text = caplog.text
    assert text.count("skipped b.png") == 1 and "2 of 4 pictures were skipped" in text
    caplog.clear()
    again = load_faces(folder, tmp_path / "a.npy", size=8, framer=Middle())
    assert not caplog.text and again.skipped == faces.skipped and np.array_equal(again.pictures, faces.pictures)


def test_nothing_but_damage_is_an_error_with_a_reason(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    picture(tmp_path / "set" / "b.jpg")
    with pytest.raises(DataError, match="None of the 2 pictures can be used. a.jpg: "):
        load_faces(tmp_path / "set", tmp_path / "a.npy", size=8, framer=Middle())
    with pytest.raises(DataError, match="None of the 2"):  # and is not remembered as a result
        load_faces(tmp_path / "set", tmp_path / "a.npy", size=8, framer=Middle())


# --- what is kept -----------------------------------------------------------------------------


def rows_of(value, log):
    def rows():
        log.append(value)
        for i in range(3):
            yield f"{i}", np.full((2, 2, 3), value + i, np.uint8)

    return rows


def test_kept_rows_are_made_once_and_anew_for_another_key(tmp_path):
    made = []
    for key, value in ((1, 10), (1, 20), (2, 30)):
        faces = kept(tmp_path / "x.npy", {"key": key}, (2, 2, 3), rows_of(value, made))
    assert made == [10, 30]
    assert faces.pictures[:, 0, 0, 0].tolist() == [30, 31, 32] and isinstance(faces.pictures, np.memmap)
    assert faces.names == ("0", "1", "2")


def test_half_written_rows_are_never_used(tmp_path):
    def dies():
        yield "0", np.zeros((2, 2, 3), np.uint8)
        raise KeyboardInterrupt

    made = []
    kept(tmp_path / "x.npy", {"key": 1}, (2, 2, 3), rows_of(10, made))
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "x.npy", {"key": 2}, (2, 2, 3), dies)
    for key, value in ((2, 20), (1, 30)):  # neither the new key's half nor the old file under it
        faces = kept(tmp_path / "x.npy", {"key": key}, (2, 2, 3), rows_of(value, made))
        assert faces.pictures[0, 0, 0, 0] == value
    assert made == [10, 20, 30]


def test_a_kill_between_the_rows_and_their_note_does_not_leave_the_old_note(tmp_path, monkeypatch):
    replace, made = os.replace, []

    def dies(source, target):
        if str(target).endswith(".json"):
            raise KeyboardInterrupt
        replace(source, target)

    kept(tmp_path / "x.npy", {"key": 1}, (2, 2, 3), rows_of(10, made))
    monkeypatch.setattr(data.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "x.npy", {"key": 2}, (2, 2, 3), rows_of(20, made))
    monkeypatch.setattr(data.os, "replace", replace)
    faces = kept(tmp_path / "x.npy", {"key": 1}, (2, 2, 3), rows_of(30, made))
    assert faces.pictures[0, 0, 0, 0] == 30


def test_a_file_without_its_note_is_not_used_as_kept_but_can_be_opened(tmp_path):
    made = []
    kept(tmp_path / "x.npy", {"key": 1}, (2, 2, 3), rows_of(10, made))
    (tmp_path / "x.json").unlink()
    assert open_faces(tmp_path / "x.npy").names == ("00000", "00001", "00002")
    kept(tmp_path / "x.npy", {"key": 1}, (2, 2, 3), rows_of(20, made))
    assert made == [10, 20]


def test_crops_are_cut_anew_when_a_picture_or_the_way_of_cutting_changes(tmp_path, monkeypatch):
    def value(**settings):
        return int(load_faces(tmp_path / "set", tmp_path / "a.npy", size=8, aligned=True, **settings).pictures[0, 0, 0, 0])

    path = tmp_path / "set" / "a.png"
    picture(path, value=10)
    assert value() == 10
    before = os.stat(tmp_path / "a.npy").st_mtime_ns
    assert value() == 10 and os.stat(tmp_path / "a.npy").st_mtime_ns == before
    picture(path, value=90)
    os.utime(path, ns=(1, 1))
    assert value() == 90
    key = json.loads((tmp_path / "a.json").read_text())["key"]
    value(margin=1.5)
    assert json.loads((tmp_path / "a.json").read_text())["key"] != key
    picture(tmp_path / "set" / "0.png", value=30)
    assert value() == 30


def test_a_file_that_is_no_faces_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(DataError, match="not faces"):
        load_faces(tmp_path / "a.npy", tmp_path / "b.npy", size=8)
    (tmp_path / "a.npy").write_bytes(b"half")
    with pytest.raises(DataError, match="no readable file"):
        open_faces(tmp_path / "a.npy")
