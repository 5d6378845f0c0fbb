"""The errors are what a caller would catch, and the message contains the way out."""

import pickle

import pytest

from faceedit import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ImageError", ValueError),
        ("ImageNotFoundError", FileNotFoundError),
        ("ImageTooLargeError", errors.ImageError),
        ("NoFaceError", LookupError),
        ("FaceSelectionError", LookupError),
        ("LandmarksError", ValueError),
        ("StrengthError", ValueError),
        ("CheckpointNotFoundError", FileNotFoundError),
        ("CheckpointError", ValueError),
        ("ConfigError", ValueError),
        ("DownloadError", OSError),
        ("OutputExistsError", FileExistsError),
        ("MissingDependencyError", ImportError),
        ("ConversionError", ValueError),
        ("UsageError", ValueError),
        ("DataError", ValueError),
        ("DivergedError", ArithmeticError),
    ],
)
def test_each_error_is_caught_as_its_builtin_and_keeps_its_message(name, builtin):
    error_class = getattr(errors, name)
    with pytest.raises(builtin) as caught:
        raise error_class("what to do")
    assert isinstance(caught.value, errors.FaceEditError)
    assert str(caught.value) == "what to do"


def test_every_error_of_the_module_is_public():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FaceEditError)
    }
    assert classes == set(errors.__all__)


def test_an_unknown_attribute_gets_the_near_names_as_they_are_spelt():
    error = errors.UnknownAttributeError("Smlie", ["age", "Smile", "glasses"])
    assert isinstance(error, ValueError)
    assert (error.name, error.known) == ("Smlie", ("age", "Smile", "glasses"))
    assert error.suggestions == ("Smile",)
    assert "Did you mean 'Smile'?" in str(error)
    assert "age, Smile, glasses" in str(error)


def test_an_unknown_attribute_far_from_all_gets_only_the_list():
    error = errors.UnknownAttributeError("xylophone", ["age", "smile"])
    assert error.suggestions == ()
    assert "Did you mean" not in str(error)
    assert "age, smile" in str(error)


def test_an_unknown_attribute_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(errors.UnknownAttributeError("agee", ["age"])))
    assert (error.name, error.known, error.suggestions) == ("agee", ("age",), ("age",))
    assert str(error).count("Unknown attribute") == 1
