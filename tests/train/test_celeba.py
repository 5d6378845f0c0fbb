"""The CelebA subset: splits and halves that never mix, pictures with their own labels."""

import pytest
from PIL import Image
from tiny_celeba import write_celeba

from faceedit.errors import DataError
from faceedit.train.celeba import read_celeba, split_files


def test_splits_never_overlap_and_leave_nothing_out():
    parts = [split_files(part) for part in ("train", "choose", "report")]
    assert [len(part) for part in parts] == [7500, 1000, 1500]
    assert len(set().union(*parts)) == 10000
    assert parts[1][0] == "007501.jpg" and parts[2][0] == "008501.jpg"


def test_halves_share_out_a_split():
    a, b = split_files("train", "A"), split_files("train", "B")
    assert a[:2] == ["000001.jpg", "000003.jpg"] and b[:2] == ["000002.jpg", "000004.jpg"]
    assert sorted(a + b) == split_files("train") and not set(a) & set(b)
    with pytest.raises(KeyError):
        split_files("train", "C")


def test_pictures_come_with_their_own_labels(tmp_path):
    write_celeba(tmp_path, 4)
    pictures, labels, names = read_celeba(tmp_path, ["000003.jpg", "000002.jpg"])
    assert names == ("Bright", "Other")
    assert labels.tolist() == [[1, 0], [0, 1]]
    assert pictures[0].float().mean() > pictures[1].float().mean() + 100


def test_pictures_of_another_size_and_missing_ones_are_refused_by_name(tmp_path):
    write_celeba(tmp_path, 4)
    (tmp_path / "images" / "000002.jpg").unlink()
    Image.new("RGB", (178, 218)).save(tmp_path / "images" / "000003.jpg")
    with pytest.raises(DataError, match="000002.jpg"):
        read_celeba(tmp_path, ["000001.jpg", "000002.jpg"])
    with pytest.raises(DataError, match="000003.jpg.*178x218 pixels, not 89x109"):
        read_celeba(tmp_path, ["000003.jpg"])


def test_a_picture_without_labels_is_refused(tmp_path):
    write_celeba(tmp_path, 4)
    with pytest.raises(DataError, match="1 of 2 pictures have no labels, such as '000009.jpg'"):
        read_celeba(tmp_path, ["000001.jpg", "000009.jpg"])
