"""Checkpoints: written and read back exactly, downloaded for real, and refused by name."""

import json
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, run_client
from torch import nn

from faceedit import hub
from faceedit.config import AttributeInfo, GeneratorConfig, ModelConfig
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DownloadError,
    OutputExistsError,
    UsageError,
)

NAMES = ["README.md", "config.json", "model.safetensors"]

CONFIG = ModelConfig(
    generator=GeneratorConfig("tiny", resolution=8, n_styles=2, style_dim=4),
    attributes={"smile": AttributeInfo(range=(-2.0, 2.0))},
    licence="Apache-2.0",
)


def make_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "generator.weight": torch.randn(4, 3, generator=generator),
        "generator.bias": torch.randn(4, generator=generator),
        "steps": torch.tensor([2**40 + 1, -3]),
    }


@pytest.fixture
def checkpoint(tmp_path):
    return hub.save_checkpoint(tmp_path / "checkpoint", CONFIG, make_tensors(), "# Tiny\n")


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


# Saving and loading


def test_a_saved_checkpoint_is_read_back_exactly(checkpoint):
    assert sorted(os.listdir(checkpoint)) == NAMES
    config, tensors = hub.load_checkpoint(checkpoint)
    assert config == CONFIG
    assert_same(tensors, make_tensors())
    assert (checkpoint / "README.md").read_text() == "# Tiny\n"


def test_float16_storage_is_for_floats_only(tmp_path):
    folder = hub.save_checkpoint(tmp_path, CONFIG, make_tensors(), "", dtype=torch.float16)
    _, tensors = hub.load_checkpoint(folder)
    expected = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in make_tensors().items()
    }
    assert_same(tensors, expected)


def test_views_tied_weights_and_parameters_can_be_saved(tmp_path):
    weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))
    given = {"a": weight, "b": weight, "turned": weight.T}
    _, tensors = hub.load_checkpoint(hub.save_checkpoint(tmp_path, CONFIG, given, ""))
    assert_same(tensors, {name: tensor.detach() for name, tensor in given.items()})


def test_equal_checkpoints_have_equal_bytes(checkpoint, tmp_path):
    again = hub.save_checkpoint(tmp_path / "again", CONFIG, make_tensors(), "# Tiny\n")
    for name in NAMES:
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes()


@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e6, torch.float16)]
)
def test_tensors_that_would_be_stored_as_nan_or_infinity_are_refused(value, dtype, tmp_path):
    tensors = {"fine": torch.zeros(3), "bad": torch.tensor([0.0, value])}
    with pytest.raises(CheckpointError, match="'bad'"):
        hub.save_checkpoint(tmp_path / "new", CONFIG, tensors, "", dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_replaced_only_on_request_and_foreign_files_stay(checkpoint):
    notes = checkpoint / "notes.txt"
    notes.write_text("mine")
    modes = {path.stat().st_mode for path in checkpoint.iterdir()}
    assert modes == {notes.stat().st_mode}  # as readable as any other file
    with pytest.raises(FileExistsError, match="config.json, model.safetensors") as caught:
        hub.save_checkpoint(checkpoint, CONFIG, {}, "")
    assert isinstance(caught.value, OutputExistsError)
    assert_same(hub.load_checkpoint(checkpoint)[1], make_tensors())
    hub.save_checkpoint(checkpoint, CONFIG, {"new": torch.ones(2)}, "new", overwrite=True)
    assert_same(hub.load_checkpoint(checkpoint)[1], {"new": torch.ones(2)})
    assert sorted(os.listdir(checkpoint)) == [*NAMES, "notes.txt"]


def test_a_save_that_breaks_off_is_never_taken_for_a_checkpoint(checkpoint, monkeypatch):
    replace = os.replace

    def stops_after_the_tensors(source, target):
        if "README" in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stops_after_the_tensors)
    with pytest.raises(OSError, match="No space left"):
        hub.save_checkpoint(checkpoint, CONFIG, {}, "", overwrite=True)
    with pytest.raises(CheckpointNotFoundError, match="no config.json"):
        hub.load_checkpoint(checkpoint)
    assert not [name for name in os.listdir(checkpoint) if name.startswith(".")]


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        hub.save_checkpoint(tmp_path / "file", CONFIG, {}, "")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, checkpoint):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"no {name} in .*checkpoint"):
        hub.load_checkpoint(checkpoint)


def test_truncated_tensors_are_refused_wherever_they_break_off(checkpoint):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="model.safetensors' is truncated or corrupt"):
            hub.load_checkpoint(checkpoint)


class Bomb:
    """Unpickling one raises KeyboardInterrupt, which nothing on the way would swallow."""

    def __reduce__(self):
        return exec, ("raise KeyboardInterrupt",)


def test_pickles_are_never_executed(checkpoint):
    torch.save({"weight": Bomb()}, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="corrupt"):
        hub.load_checkpoint(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="corrupt"):
        hub.load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "config.json"),
        (b'{"format_version": 1, "generator": {"name": "g"}, "extra": 1}', "Unknown key extra"),
    ],
)
def test_a_bad_config_is_refused_and_its_file_named(content, message, checkpoint):
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        hub.load_checkpoint(checkpoint)
    assert "config.json" in str(caught.value)


# Filling modules


def test_load_module_fills_every_parameter_and_buffer_in_the_modules_dtype():
    source, target = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    nn.init.uniform_(source.weight)
    source.running_mean.fill_(0.25)
    source.num_batches_tracked.fill_(7)
    tensors = {f"norm.{key}": value for key, value in source.state_dict().items()}
    tensors["norm.weight"] = tensors["norm.weight"].half()
    tensors["normal.weight"] = torch.zeros(1)  # another module whose name begins alike
    hub.load_module(target, tensors, "norm")
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight, source.weight.half().float())
    assert torch.equal(target.running_mean, source.running_mean)
    assert target.num_batches_tracked == 7
    hub.load_module(target, source.state_dict())
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("net.0.weight"), r"missing: net\.0\.weight"),
        (lambda t: t.update({"net.9.bias": torch.zeros(1)}), r"left over: net\.9\.bias"),
        (
            lambda t: t.update({"net.0.bias": torch.zeros(1)}),
            r"misfitting: net\.0\.bias is float \(1,\) and must be float \(2,\)",
        ),
        (
            lambda t: t.update({"net.0.bias": torch.zeros(2, dtype=torch.int64)}),
            r"net\.0\.bias is integer \(2,\) and must be float \(2,\)",
        ),
    ],
)
def test_load_module_refuses_whatever_does_not_fit(change, message):
    module = nn.Sequential(nn.Linear(3, 2))
    before = module[0].weight.clone()
    tensors = {f"net.{key}": torch.ones_like(value) for key, value in module.state_dict().items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        hub.load_module(module, tensors, "net")
    assert "Sequential" in str(caught.value)
    assert torch.equal(module[0].weight, before)


def test_load_module_names_five_keys_and_counts_the_rest():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(CheckpointError, match=r"0\.weight, .*2\.weight and 3 more"):
        hub.load_module(module, {})


# Finding


def test_nothing_means_the_checkpoint_inside_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(hub.importlib.resources, "files", lambda package: tmp_path / package)
    with pytest.raises(CheckpointNotFoundError, match="install faceedit again"):
        hub.resolve()
    folder = tmp_path / "faceedit" / "weights" / "default"
    folder.mkdir(parents=True)
    assert hub.resolve() == folder


def test_a_folder_is_found_as_str_and_as_path(checkpoint):
    assert hub.resolve(checkpoint) == checkpoint
    assert hub.resolve(str(checkpoint)) == checkpoint


def test_a_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("owner/name")
    assert hub.resolve("owner/name").samefile(tmp_path / "owner" / "name")


@pytest.mark.parametrize(
    "name", ["nowhere", "./owner/name", "a/b/c", "", "owner/", "../name", Path("owner/name")]
)
def test_what_is_no_folder_and_no_hub_id_is_refused_offline(name, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *arguments: pytest.fail("went to the network"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder .*no Hub id") as caught:
        hub.resolve(name)
    assert isinstance(caught.value, CheckpointNotFoundError)


def test_a_file_is_refused(checkpoint):
    with pytest.raises(CheckpointNotFoundError, match="is a file. Pass the folder"):
        hub.resolve(checkpoint / "model.safetensors")


def test_arguments_that_would_do_nothing_are_refused(checkpoint):
    with pytest.raises(UsageError, match="revision='v1'"):
        hub.resolve(checkpoint, revision="v1")
    with pytest.raises(UsageError, match="revision='v1'.*default checkpoint"):
        hub.resolve(revision="v1")
    with pytest.raises(UsageError, match="exclude each other"):
        hub.resolve("owner/name", local_files_only=True, force_download=True)


# Downloading

# Resolves each set of arguments and prints what came of it, as JSON.
CLIENT = """
import json, sys
from faceedit import errors, hub
outcomes = []
for name, arguments in json.loads(sys.argv[1]):
    try:
        outcomes.append({"folder": str(hub.resolve(name, **arguments))})
    except errors.FaceEditError as error:
        outcomes.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(outcomes))
"""


def resolve_as_client(home, endpoint, *calls, **environment):
    """What `hub.resolve` returns or raises in a process of its own, for each (name, arguments)."""
    done = run_client(CLIENT, home, endpoint, json.dumps(calls), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def server(checkpoint):
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with HubServer() as server:
        server.add("owner/tiny", checkpoint)
        server.add("owner/gated", checkpoint, token="secret")
        server.add("owner/broken", checkpoint, broken=True)
        yield server


def test_round_trip_through_the_hub_and_then_without_it(server, checkpoint, tmp_path):
    home = tmp_path / "home"
    commit = server.commit("owner/tiny")
    first, by_commit = resolve_as_client(
        home, server.url, ("owner/tiny", {}), ("owner/tiny", {"revision": commit})
    )
    folder = first["folder"]
    assert folder.startswith(str(home)) and by_commit["folder"] == folder
    assert sorted(os.listdir(folder)) == NAMES  # the pickle was left where it was
    for name in NAMES:
        with open(os.path.join(folder, name), "rb") as file:
            assert file.read() == (checkpoint / name).read_bytes()
    config, tensors = hub.load_checkpoint(folder)
    assert config == CONFIG
    assert_same(tensors, make_tensors())
    fetched = [request for request in server.requests if request.startswith("GET /owner/tiny/")]
    assert len(fetched) == len(NAMES)

    # From the cache: with the server there nothing is asked of it; without it, the same folder.
    before = len(server.requests)
    (again,) = resolve_as_client(home, server.url, ("owner/tiny", {"local_files_only": True}))
    assert again["folder"] == folder
    assert len(server.requests) == before
    (gone,) = resolve_as_client(home, closed_endpoint(), ("owner/tiny", {}))
    assert gone["folder"] == folder


def test_force_download_mends_a_damaged_cache_and_a_new_commit_is_fetched(
    server, checkpoint, tmp_path
):
    call = ("owner/tiny", {"cache_dir": str(tmp_path / "cache")})
    forced = ("owner/tiny", {"cache_dir": str(tmp_path / "cache"), "force_download": True})
    (first,) = resolve_as_client(tmp_path / "home", server.url, call)
    assert first["folder"].startswith(str(tmp_path / "cache"))
    Path(first["folder"], "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="force_download=True"):
        hub.load_checkpoint(first["folder"])
    (mended,) = resolve_as_client(tmp_path / "home", server.url, forced)
    assert_same(hub.load_checkpoint(mended["folder"])[1], make_tensors())
    hub.save_checkpoint(checkpoint, CONFIG, {"new": torch.ones(1)}, "", overwrite=True)
    (second,) = resolve_as_client(tmp_path / "home", server.url, call)
    assert second["folder"] != first["folder"]
    assert_same(hub.load_checkpoint(second["folder"])[1], {"new": torch.ones(1)})


def test_what_the_hub_refuses_is_said_with_the_way_out(server, tmp_path):
    missing, revision, gated, broken, uncached, impossible, allowed = resolve_as_client(
        tmp_path / "home",
        server.url,
        ("owner/missing", {}),
        ("owner/tiny", {"revision": "v9"}),
        ("owner/gated", {}),
        ("owner/broken", {}),
        ("owner/tiny", {"local_files_only": True}),
        ("owner/a--b..c", {}),
        ("owner/gated", {"token": "secret"}),
    )
    assert missing["error"] == CheckpointNotFoundError.__name__
    assert "neither a folder 'owner/missing' here nor a repository" in missing["message"]
    assert revision["error"] == CheckpointNotFoundError.__name__
    assert "no revision 'v9'" in revision["message"]
    assert gated["error"] == DownloadError.__name__
    assert "gated" in gated["message"] and "hf auth login" in gated["message"]
    assert broken["error"] == DownloadError.__name__
    assert "500" in broken["message"] and "try again" in broken["message"]
    assert uncached["error"] == CheckpointNotFoundError.__name__
    assert "network is forbidden" in uncached["message"]
    assert impossible["error"] == CheckpointNotFoundError.__name__
    assert "no possible Hub id" in impossible["message"]
    assert sorted(os.listdir(allowed["folder"])) == NAMES


def test_without_network_and_cache_the_error_says_so(tmp_path):
    call = ("owner/tiny", {})
    (unreachable,) = resolve_as_client(tmp_path, closed_endpoint(), call)
    assert unreachable["error"] == DownloadError.__name__
    assert "Check the connection" in unreachable["message"]
    (offline,) = resolve_as_client(tmp_path, closed_endpoint(), call, HF_HUB_OFFLINE="1")
    assert offline["error"] == CheckpointNotFoundError.__name__
    assert "HF_HUB_OFFLINE" in offline["message"]


def closed_endpoint():
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
