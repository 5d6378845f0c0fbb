"""Label files in every form, and pictures by lot."""

import pytest

from faceedit.errors import UnknownAttributeError, UsageError
from faceedit.train.labelled_pictures import draw, list_pictures, read_labels

EXPECTED = {"a.jpg": True, "b.jpg": False, "c.jpg": True}
CELEBA = "3\nBangs Wearing_Hat\na.jpg -1  1\nb.jpg  1 -1\nc.jpg  1  1\n"


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,1\nb.jpg,0\nc.jpg,1\n",
        "name,label\na.jpg,yes\nb.jpg,no\n\nc.jpg,Yes\n",
        "\ufeffname, wearing hat\na.jpg, with\nb.jpg, without\nc.jpg, true\n",
        "file,Bangs,Wearing_Hat\na.jpg,-1,1\nb.jpg,1,-1\nc.jpg,1,1\n",
        CELEBA,
        "3\nWearing_Hat\na.jpg  1\nb.jpg -1\nc.jpg  1\n",
    ],
    ids=["plain", "header", "words", "CSV table", "CelebA", "CelebA, one attribute"],
)
def test_every_form_of_label_file_is_read(text, tmp_path):
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels", "wearing hat") == EXPECTED


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("", UsageError, "empty"),
        ("a.jpg,1\nb.jpg,maybe\n", UsageError, "line 2"),
        ("a.jpg,1\nb.jpg\nc.jpg,0\n", UsageError, "line 2"),
        (CELEBA.replace("Wearing_Hat", "Wearing_Necktie"), UnknownAttributeError, "Bangs"),
    ],
)
def test_a_label_file_that_does_not_fit_is_refused(text, error, named, tmp_path):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(error, match=named):
        read_labels(tmp_path / "labels", "wearing_hat")
    with pytest.raises(UsageError, match="none.csv"):
        read_labels(tmp_path / "none.csv", "wearing_hat")


def test_pictures_are_found_below_a_folder_and_drawn_by_lot(tmp_path):
    (tmp_path / "below").mkdir()
    names = ["a.jpg", "b.PNG", "below/c.webp", "notes.txt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found = list_pictures(tmp_path)
    assert found == [tmp_path / name for name in names[:3]]
    assert draw(found, 2, 7) == draw(found, 2, 7) and len(draw(found, 2, 7)) == 2
    assert draw(found, 9, 7) == found
    with pytest.raises(UsageError, match="nothing"):
        list_pictures(tmp_path / "nothing")
