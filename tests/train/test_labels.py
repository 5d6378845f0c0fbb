"""Label files of three forms, and splits that never share a picture."""

import pytest

from faceedit.errors import DataError
from faceedit.train.labels import Labels, read_labels, split

OFFICIAL = "3\nSmiling Young\n000001.jpg -1  1\n000002.jpg  1  1\n000003.jpg  1 -1\n"
TABLE = "file,Smiling,Young\n000001.jpg,-1,1\n000002.jpg,1,1\n000003.jpg,1,0\n"


@pytest.mark.parametrize(("name", "text"), [("list_attr_celeba.txt", OFFICIAL), ("attributes.csv", TABLE)])
def test_both_forms_give_the_same_labels(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    labels = read_labels(tmp_path / name)
    assert labels.attributes == ("Smiling", "Young")
    assert labels.tensor(["000003.jpg", "000001.jpg"]).tolist() == [[1, 0], [0, 1]]
    assert labels.tensor(["female/000002.jpg"]).tolist() == [[1, 1]]  # by the file's own name
    with pytest.raises(DataError, match="1 of 2 pictures have no labels, such as '9.jpg'"):
        labels.tensor(["000001.jpg", "9.jpg"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", TABLE.replace("2.jpg,1,1", "2.jpg,1"), "line 3: '000002.jpg' must have 2 labels"),
        ("a.csv", TABLE.replace("2.jpg,1,1", "2.jpg,1,perhaps"), "line 3"),
        ("a.txt", OFFICIAL.replace(" 1 -1", " 1"), "line 5: '000003.jpg' must have 2 labels"),
        ("a.csv", TABLE.replace("1.jpg,-1,1", "1.jpg,-1,1,1"), "line 2: '000001.jpg' must have 2 labels"),
        ("a.csv", "a.jpg,1,1\n", "line 1: 'a.jpg' must have 1 labels"),
        ("a.csv", "", "holds no labels"),
        ("a.txt", "2\n", "holds no labels"),
        ("a.txt", None, "cannot be read"),
    ],
)
def test_a_wrong_label_file_is_refused_at_its_line(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / name)
    assert message in str(caught.value)


def test_a_file_of_one_attribute_needs_no_header_and_labels_may_be_words(tmp_path):
    (tmp_path / "one").write_text("a.jpg,with\nb.jpg,No\n")
    assert read_labels(tmp_path / "one") == Labels(("label",), {"a.jpg": (1,), "b.jpg": (0,)})
    (tmp_path / "table").write_text("Smiling Young\na.jpg yes -1\n")
    assert read_labels(tmp_path / "table") == Labels(("Smiling", "Young"), {"a.jpg": (1, 0)})


NAMES = [f"{i:06d}.jpg" for i in range(1, 11)]


def test_parts_by_ranges_steps_and_lists(tmp_path):
    (tmp_path / "report.txt").write_text("# held out\n000009.jpg\n000007  # by its stem\n")
    parts = split(NAMES, {"odd": "1-6:2", "even": "2-3, 5-6:3", "report": str(tmp_path / "report.txt")} | {"even": "2-6:2"})
    assert parts == {"odd": [0, 2, 4], "even": [1, 3, 5], "report": [6, 8]}
    assert split(NAMES, {"a": "1-2,5-5"}) == {"a": [0, 1, 4]}
    assert split(["b/01.png", "a/01.png", "x.png"], {"a": "1-1"}) == {"a": [0, 1]}


def test_overlapping_parts_are_an_error(tmp_path):
    with pytest.raises(DataError, match="'train' and 'report' share 2 pictures, such as '000006.jpg'"):
        split(NAMES, {"train": "1-7", "report": "6-10"})
    (tmp_path / "names.txt").write_text("000003.jpg\n")
    with pytest.raises(DataError, match="share 1 picture"):
        split(NAMES, {"train": "1-7", "report": str(tmp_path / "names.txt")})


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("20-30", "holds none of the 10 pictures"),
        ("5-2", "the range '5-2' is empty"),
        ("1-5:0", "is empty"),
        ("nowhere.txt", "neither a range such as 1-7500 nor a readable text file"),
        ("list", "1 of 2 names in"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(tmp_path, which, message):
    if which == "list":
        (tmp_path / "names.txt").write_text("000001.jpg\n99.jpg\n")
        which = str(tmp_path / "names.txt")
    with pytest.raises(DataError) as caught:
        split(NAMES, {"part": which})
    assert message in str(caught.value)
