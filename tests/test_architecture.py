"""The house rules that a reader could break without noticing: who imports whom, and when."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import faceedit

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "faceedit"

# A module imports only lower ranks. What is not listed stands with the branches and generators.
MODEL_RANKS = {
    "ops": 0, "layers": 1, "efficientnet_lite": 1, "ir_se50": 1, "face_mesh": 1,
    "efficientnet_encoder": 3, "psp_encoder": 3, "e4e_encoder": 4, "fusion": 3,
}  # fmt: skip
MODEL_MIDDLE = 2
# An interface, which its implementations of the same rank import.
MODEL_INTERFACES = {"faceedit.models.generator", "faceedit.models.encoder"}


def module_name(path):
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source, module, is_package=False):
    """Dotted names of all that a source imports, at any depth; for "from a import b" a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, *filter(None, [node.module])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@cache
def imports():
    """Each module of the package -> what it imports."""
    return {
        module_name(path): imported_names(
            path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"
        )
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def importers(target):
    """The modules that import `target` or anything in it."""
    return {
        module
        for module, names in imports().items()
        if any(name == target or name.startswith(target + ".") for name in names)
    }


def inside(*packages):
    """The modules of the package that are, or are in, one of the given ones."""
    return {
        module
        for module in imports()
        if any(module == package or module.startswith(package + ".") for package in packages)
    }


def test_the_reader_of_imports_sees_every_kind():
    source = """
import os.path
from . import sibling
from .near import thing
from ..far import other
from faceedit import images
def later():
    import dlib
"""
    assert imported_names(source, "faceedit.models.encoder") == {
        "os.path",
        "faceedit.models",
        "faceedit.models.sibling",
        "faceedit.models.near",
        "faceedit.models.near.thing",
        "faceedit.far",
        "faceedit.far.other",
        "faceedit",
        "faceedit.images",
        "dlib",
    }
    assert imported_names("from . import a", "faceedit.models", is_package=True) == {
        "faceedit.models",
        "faceedit.models.a",
    }


def test_the_whole_package_is_looked_at():
    assert {"faceedit", "faceedit.hub", "faceedit.models.generator"} <= set(imports())
    assert importers("huggingface_hub") == {"faceedit.hub"}


def test_errors_and_config_need_only_the_standard_library():
    for module in ("faceedit.errors", "faceedit.config"):
        foreign = {
            name
            for name in imports()[module]
            if name.split(".")[0] not in sys.stdlib_module_names
            and not name.startswith("faceedit.errors")
        }
        assert not foreign, f"{module} imports {foreign}"


@pytest.mark.parametrize(
    ("importing", "forbidden"),
    [
        ("models", ("images", "faces", "hub", "editor", "train", "cli", "files", "results")),
        ("images", ("models", "hub", "editor", "cli")),
        ("files", ("models", "hub", "editor", "cli")),
        ("faces", ("models", "hub", "editor", "cli")),
        ("crop", ("models", "hub", "editor", "cli")),
        ("results", ("models", "hub", "editor", "cli")),
        ("directions", ("editor", "cli")),
        ("hub", ("editor", "cli")),
        ("convert", ("editor", "cli")),
        ("editor", ("cli",)),
    ],
)
def test_nobody_imports_from_above(importing, forbidden):
    for target in forbidden:
        offenders = inside(f"faceedit.{importing}") & importers(f"faceedit.{target}")
        assert not offenders, f"{offenders} import faceedit.{target}"


def test_nothing_outside_train_imports_train():
    assert not importers("faceedit.train") - inside("faceedit.train")


def test_models_import_only_what_is_below_them():
    def rank(module):
        return MODEL_RANKS.get(module.rpartition(".")[2], MODEL_MIDDLE)

    models = inside("faceedit.models") - {"faceedit.models"}
    for module in models:
        for target in (imports()[module] & models) - MODEL_INTERFACES:
            assert rank(target) < rank(module), f"{module} imports {target}"
    for module in MODEL_INTERFACES & models:
        assert not imports()[module] & models


@pytest.mark.parametrize(
    ("library", "home"), [("huggingface_hub", "faceedit.hub"), ("dlib", "faceedit.faces")]
)
def test_a_library_has_one_importer(library, home):
    assert importers(library) <= {home}


def test_nothing_is_unpickled_outside_convert_and_train():
    for module in set(imports()) - inside("faceedit.convert", "faceedit.train"):
        names = imports()[module]
        assert not {"pickle", "joblib", "dill", "torch.load"} & names, module
        path = PACKAGE.parent.joinpath(*module.split("."))
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), module


def test_only_the_command_line_and_train_print():
    for path in PACKAGE.rglob("*.py"):
        if module_name(path) in inside("faceedit.cli", "faceedit.train"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path.name}:{node.lineno}"


def repository_files():
    """What git tracks or would add; without git, the package and its tests."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [path for top in (PACKAGE, ROOT / "tests") for path in top.rglob("*.py")]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# Put together here so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.~/$}:])/(?:" + "|".join(["work", "tmp", "root", "Users", "home"]) + r")/[\w.]"
    r"|\b[A-Z]:\\\\?(?:Users|Windows)",
)


def test_machine_paths_are_recognised():
    for path in ("'/" + "tmp/venv'", "(/" + "home/me/x)", "C:\\" + "Users\\me"):
        assert MACHINE_PATH.search(path), path
    for path in ("https://x.org/" + "home/page", "weights/" + "work/x", "${HOME}/" + "tmp/x"):
        assert not MACHINE_PATH.search(path), path


def test_the_repository_names_no_path_of_a_machine():
    files = repository_files()
    assert PACKAGE / "errors.py" in files
    for path in files:
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue  # not text
        found = MACHINE_PATH.search(data.decode("utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)} contains {found[0]!r}"


def test_importing_faceedit_is_quick_and_brings_nothing_large():
    code = """
import json, sys, time
before = time.perf_counter()
import faceedit
seconds = time.perf_counter() - before
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, loaded = json.loads(done.stdout)
    assert not {"torch", "numpy", "PIL", "dlib", "huggingface_hub", "safetensors"} & set(loaded)
    assert seconds < 0.2
    assert not done.stderr


def test_public_names_are_there_when_they_are_asked_for():
    from faceedit.errors import FaceEditError
    from faceedit.results import EditedFace, EditResult, Inversion

    assert faceedit.EditResult is EditResult
    assert faceedit.EditedFace is EditedFace
    assert faceedit.Inversion is Inversion
    assert faceedit.errors.FaceEditError is FaceEditError
    assert re.fullmatch(r"\d+\.\d+\.\d+", faceedit.__version__)
    assert set(faceedit.__all__) <= set(dir(faceedit))
    with pytest.raises(AttributeError, match="'faceedit' has no attribute 'nothing'"):
        faceedit.nothing  # noqa: B018
    assert (PACKAGE / "py.typed").is_file()


def test_the_list_of_public_names_is_deliberate():
    """Adding or removing one is a decision about the interface; write it into CHANGELOG."""
    assert set(faceedit.__all__) == {
        "EditResult",
        "EditedFace",
        "FaceEditor",
        "Inversion",
        "__version__",
        "errors",
    }
