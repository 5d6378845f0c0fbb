"""The reader of foreign files: what it builds equals what was saved, and a file can make it do nothing else."""

import argparse
import collections
import io
import itertools
import os
import pickle
import random
import struct
import zipfile

import foreign
import numpy as np
import pytest
import torch

from faceedit.convert import unpickle
from faceedit.convert.builders import Record
from faceedit.errors import CheckpointError, CheckpointNotFoundError, ConversionError, FaceEditError

STATE = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
CONTENT = {
    "g_ema": STATE,
    "opts": argparse.Namespace(lr=1e-3, name="x", device=torch.device("cpu"), dtype=torch.float16, tags={"a", "b"}),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "part": torch.arange(12)[3:9:2],
    "bool": torch.tensor([True, False]),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3.0),
    "array": np.arange(6.0).reshape(2, 3).T,
    "big_endian": np.arange(3, dtype=">f4"),
    "number": np.float64(2.5),
    "size": torch.Size([1, 2]),
    "bytes": b"abc",
    "ordered": collections.OrderedDict(a=[1, None, (True, 2.5)]),
}


def save_zip(path, content):
    torch.save(content, path)


def save_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(protocol):
    return lambda path, content: path.write_bytes(pickle.dumps(content, protocol=protocol))


WRITERS = {"zip": save_zip, "legacy": save_legacy, **{f"pickle{n}": save_pickle(n) for n in (2, 3, 4, 5)}}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_is_read_is_what_was_saved(write, tmp_path):
    path = tmp_path / "file"
    write(path, CONTENT)
    found = unpickle.read(path)
    assert list(found) == list(CONTENT)
    for name, value in CONTENT.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value), name
    assert all(torch.equal(found["g_ema"][name], value) for name, value in STATE.items())
    assert found["opts"] == {"lr": 1e-3, "name": "x", "device": "cpu", "dtype": "float16", "tags": {"a", "b"}}
    for name in ("number", "size", "bytes", "ordered"):
        assert found[name] == CONTENT[name]


def test_tensors_that_shared_memory_still_do(tmp_path):
    base = torch.zeros(4)
    for write in (save_zip, save_legacy):
        write(tmp_path / "file", [base, base[2:]])
        whole, part = unpickle.read(tmp_path / "file")
        whole[3] = 7
        assert part.tolist() == [0, 7]


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.float32(1), np.zeros((0, 4))])
def test_numpy_files(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    found = unpickle.read(tmp_path / "a.npy")
    assert found.dtype == array.dtype and np.array_equal(found, array)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=array, y=np.ones(2))
        found = unpickle.read(tmp_path / "a.npz")
        assert list(found) == ["x", "y"] and np.array_equal(found["x"], array)


def test_nvidia_objects_become_records_and_their_source_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    made = foreign.generator()
    path = foreign.nvidia(made, tmp_path / "n.pkl", source=f"open({str(marker)!r}, 'w').write('ran')")
    found = unpickle.read(path)
    network = found["G_ema"]
    assert isinstance(network, Record) and network.name == "Generator"
    assert found["training_set_kwargs"] == {"resolution": foreign.SIZE}
    mean = network.state["_modules"]["mapping"].state["_buffers"]["w_avg"]
    assert torch.equal(mean, made.mean_latent)
    assert not marker.exists()
    assert "open(" not in repr(vars_of(network))


def vars_of(record):
    return {key: value for key, value in record.state.items() if key != "_modules"}


# Files that want something done


class Calls:
    """Pickles as a call of anything, with any arguments."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def write(marker):
    return f"open({str(marker)!r}, 'w').write('ran')"


HOSTILE = {
    "system": lambda m: Calls(os.system, f"touch '{m}'"),
    "eval": lambda m: Calls(eval, write(m)),
    "exec": lambda m: Calls(exec, write(m)),
    "open": lambda m: Calls(open, str(m), "w"),
    "getattr": lambda m: Calls(getattr, Calls(__import__, "os"), "system"),
    "__import__": lambda m: Calls(__import__, "antigravity"),
    "load": lambda m: Calls(torch.load, str(m)),
    "numpy.load": lambda m: Calls(np.load, str(m)),
    "Popen": lambda m: Calls(__import__("subprocess").Popen, ["touch", str(m)]),
    "Linear": lambda m: torch.nn.Linear(2, 2),
    "torch.jit._serialization.load": lambda m: Calls(torch.jit.load, str(m)),
    "partial": lambda m: Calls(__import__("functools").partial, os.system, f"touch '{m}'"),
    "attrgetter": lambda m: Calls(__import__("operator").attrgetter, "system"),
    "faceedit.hub.save_checkpoint": lambda m: Calls(__import__("faceedit.hub").hub.save_checkpoint, str(m)),
}


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle2", "pickle4"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_beyond_data_is_refused_and_named(name, container, tmp_path):
    marker = tmp_path / "marker"
    payload = {"g_ema": STATE, "evil": HOSTILE[name](marker)}
    WRITERS[container](tmp_path / "file", payload)
    with pytest.raises(CheckpointError, match=rf"refers to '[\w.]*{name}'.* nothing of the file was run"):
        unpickle.read(tmp_path / "file")
    assert not marker.exists()


def test_pytorch_would_have_run_them(tmp_path):
    """The marker of the tests above is no empty threat."""
    marker = tmp_path / "marker"
    torch.save(HOSTILE["exec"](marker), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()


def raw(*parts):
    """A pickle of instructions, protocol 2."""
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


NAMESPACE, ORDERED = b"cargparse\nNamespace\n", b"ccollections\nOrderedDict\n"
TENSOR, SCALAR = b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy.core.multiarray\nscalar\n"
RECONSTRUCT, ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
LOAD_BYTES = b"ctorch.storage\n_load_from_bytes\n"
RECORD = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
FLOAT64 = DTYPE + text("f8") + b"\x85R"
EMPTY_ARRAY = RECONSTRUCT + ARRAY + b"K\x00\x85C\x01b\x87R"

TRICKS = {
    "empty stack": (raw(b""), "damaged"),
    "calls a number": (raw(b"K\x01)R"), "calls 'a int'"),
    "calls a class as a function": (raw(NAMESPACE, b")R"), "calls 'argparse.Namespace'"),
    "calls with no tuple": (raw(ORDERED, b"K\x01R"), "calls"),
    "makes an object of a function": (raw(TENSOR, b")\x81"), "makes an object"),
    "state for a function": (raw(TENSOR, b"}", text("__code__"), b"K\x01sb"), "gives state to a Global"),
    "state for a class": (raw(ORDERED, b"}", text("__init__"), b"K\x01sb"), "gives state to a Global"),
    "attributes by slots": (raw(ORDERED, b"N}", text("x"), b"K\x01s\x86b"), "gives state"),
    "state for a list": (raw(b"]}b"), "gives state to a list"),
    "memo that was never put": (raw(b"h\x07"), "damaged"),
    "memo index without end": (raw(b"K\x01r\xff\xff\xff\xffj\xfe\xff\xff\xff"), "damaged"),
    "appends to a dict": (raw(b"}K\x01a"), "appends to a dict"),
    "items of a list": (raw(b"]K\x01K\x02s"), "sets items of a list"),
    "an unhashable key": (raw(b"}]K\x01s"), "list as key"),
    "a key nested too deep to hash": (raw(b"}", b")" + b"\x85" * 50_000, b"K\x01s"), "tuple as key"),
    "INST": (raw(b"(", text("x"), b"ios\nsystem\n"), "instruction INST"),
    "OBJ": (raw(b"(cos\nsystem\no"), "posix|os.system"),
    "EXT1": (raw(b"\x82\x01"), "instruction EXT1"),
    "a persistent id in a plain pickle": (raw(b"K\x01Q"), "outside itself"),
    "a text persistent id": (raw(b"Pfile\n"), "instruction PERSID"),
    "a name that is a tuple": (b"\x80\x04)" + text("x") + b"\x93.", "no text"),
    "protocol 9": (b"\x80\x09N.", "protocol is 9"),
    "two objects": (raw(b"N") + raw(b"N"), "follow its last object"),
    "a tensor on a number": (raw(TENSOR, b"(K\x01K\x00)) \x89" .replace(b" ", b""), ORDERED, b")RtR"), "no storage"),
    "a nested file that is none": (raw(LOAD_BYTES, b"C\x04evil\x85R"), "damaged|legacy"),
    "a record without state": (raw(RECORD, b"}\x85R"), "no class name"),
    "a record of no dictionary": (raw(RECORD, b"K\x01\x85R"), "no class name"),
    "scalar of objects": (raw(SCALAR, DTYPE, text("O8"), b"\x85RC\x08AAAAAAAA\x86R"), "'O8'"),
    "scalar of a short string": (raw(SCALAR, FLOAT64, b"C\x04AAAA\x86R"), "4 bytes"),
    "scalar of no dtype": (raw(SCALAR, b"K\x01C\x08AAAAAAAA\x86R"), "wrong type"),
    "dtype of a structure": (raw(DTYPE, text("f8,O"), b"\x85R"), "only real numbers"),
    "array that claims a terabyte": (
        raw(EMPTY_ARRAY, b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85", FLOAT64, b"\x89C\x08AAAAAAAAtb"), "has 8 bytes"
    ),
    "array whose shape is negative": (
        raw(EMPTY_ARRAY, b"(K\x01J\xff\xff\xff\xff\x85", FLOAT64, b"\x89C\x08AAAAAAAAtb"), "wrong type"
    ),
    "array of a class of its own": (raw(RECONSTRUCT, ORDERED, b"K\x00\x85C\x01b\x87R"), "class other than"),
    "a set of lists": (b"\x80\x04\x8f(]\x90.", "list as key"),
    "bytes longer than the file": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "damaged"),
    "text longer than can be": (b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.", "damaged"),
    "a number longer than the file": (b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x.", "damaged"),
    "deep lists": (raw(b"]" * 30_000, b"a" * 29_999), None),
    "a list in itself": (raw(b"]q\x00h\x00a"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_of_the_pickle_machine(name, tmp_path):
    data, said = TRICKS[name]
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    if said is None:  # odd, but data
        assert isinstance(unpickle.read(path), list)
        return
    with pytest.raises(ConversionError, match=said) as caught:
        unpickle.read(path)
    assert str(path) in str(caught.value)


def test_a_file_cannot_change_the_reader(tmp_path):
    """State given to names is refused, and the same names still work afterwards."""
    for name in ("state for a function", "state for a class", "attributes by slots"):
        (tmp_path / "file").write_bytes(TRICKS[name][0])
        with pytest.raises(ConversionError):
            unpickle.read(tmp_path / "file")
    save_zip(tmp_path / "file", CONTENT)
    assert torch.equal(unpickle.read(tmp_path / "file")["scalar"], torch.tensor(3.0))


# Storages and sizes


def zip_with(path, edit):
    """A torch file whose members `edit` has changed."""
    torch.save({"a": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def replaced(name, old, new):
    def edit(members):
        key = next(key for key in members if key.endswith(name))
        assert old in members[key]
        members[key] = members[key].replace(old, new)

    return edit


# In data.pkl "K\x04" are the 4 numbers of the storage and of the tensor.
FORGED = {
    "storage of a gigabyte": (replaced("data.pkl", b"K\x04tq", b"J\x00\x00\x00\x10tq"), "claim more than"),
    "tensor beyond its storage": (replaced("data.pkl", b"QK\x00K\x04\x85", b"QK\x00K\x05\x85"), "reaches beyond"),
    "tensor from behind its storage": (replaced("data.pkl", b"QK\x00K\x04\x85", b"QK\x01K\x04\x85"), "reaches beyond"),
    "a stride of 0": (replaced("data.pkl", b"K\x04\x85q\x08K\x01", b"M\xff\xff\x85q\x08K\x00"), "reaches beyond"),
    "a negative stride": (replaced("data.pkl", b"K\x04\x85q\x08K\x01", b"K\x04\x85q\x08J\xff\xff\xff\xff"), "whole numbers"),
    "a storage that is cut": (replaced("data/0", b"\x00\x00\x40\x40", b""), "12 bytes where 16"),
    "a storage that is missing": (lambda m: m.pop("file/data/0"), "is missing"),
    "the other byte order": (replaced("byteorder", b"little", b"big"), "little-endian"),
    "a program": (lambda m: m.update({"file/constants.pkl": b""}), "TorchScript"),
    "two files in one": (lambda m: m.update({"other/data.pkl": b""}), "neither PyTorch's"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_zip_files(name, tmp_path):
    edit, said = FORGED[name]
    path = tmp_path / "file"
    zip_with(path, edit)
    with pytest.raises(ConversionError, match=said):
        unpickle.read(path)


def test_a_packed_torch_file_is_refused(tmp_path):
    torch.save(torch.zeros(1000), tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ConversionError, match="compressed, which PyTorch never does"):
        unpickle.read(tmp_path / "file")


def legacy(content, edit=lambda data: data):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return edit(file.getvalue())


NUMBERS = torch.full((4,), 1.5)
COUNT = struct.pack("<q", 4) + NUMBERS.numpy().tobytes()[:4]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.replace(COUNT, struct.pack("<q", 5) + COUNT[8:]), "5 numbers where 4"),
        (lambda d: d.replace(COUNT, struct.pack("<q", -1) + COUNT[8:]), "numbers where 4"),
        (lambda d: d.replace(COUNT, struct.pack("<q", 1 << 40) + COUNT[8:]), "numbers where 4"),
        (lambda d: d[:-4], "4 bytes too early"),
        (lambda d: d + b"more", "4 bytes follow"),
        (lambda d: d.replace(b"K\x04N", b"J\x00\x00\x00\x40N"), "claim more than"),
        (lambda d: d.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "little-endian"),
        (lambda d: d.replace(b"M\xe9\x03.", b"M\xea\x03."), "legacy version is 1002"),
    ],
)
def test_forged_legacy_files(edit, said, tmp_path):
    whole = legacy({"a": NUMBERS})
    damaged = edit(whole)
    assert damaged != whole
    (tmp_path / "file").write_bytes(damaged)
    with pytest.raises(ConversionError, match=said):
        unpickle.read(tmp_path / "file")


def test_a_nested_file_cannot_nest_another(tmp_path):
    inner = legacy(NUMBERS.untyped_storage())
    assert torch.equal(unpickle.read(_written(tmp_path, {"a": NUMBERS}))["a"], NUMBERS)
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    twice = magic + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    twice += raw(LOAD_BYTES, b"B", struct.pack("<I", len(inner)), inner, b"\x85R") + pickle.dumps([], 2)
    (tmp_path / "file").write_bytes(raw(LOAD_BYTES, b"B", struct.pack("<I", len(twice)), twice, b"\x85R"))
    with pytest.raises(ConversionError, match="where no tensor can be"):
        unpickle.read(tmp_path / "file")


def _written(folder, content):
    (folder / "plain").write_bytes(pickle.dumps(content))
    return folder / "plain"


def npy(header, data=b""):
    header = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n", b"1234"), "takes 4000000000000 bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", b"1234"), "4 are there"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", pickle.dumps(1)), "pickled objects"),
        (npy("{'descr': '<U9', 'fortran_order': False, 'shape': (1,)}\n", b"1234"), "type <U9"),
        (npy("__import__('os').system('touch marker')\n"), "damaged"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{}", "damaged"),
        (b"\x93NUMPY\x09\x00\x00\x00", "version"),
    ],
)
def test_forged_numpy_files(data, said, tmp_path):
    (tmp_path / "file.npy").write_bytes(data)
    with pytest.raises(ConversionError, match=said):
        unpickle.read(tmp_path / "file.npy")
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("x.npy", data)
    with pytest.raises(ConversionError, match=said):
        unpickle.read(tmp_path / "file.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "_MAX_UNPACKED", 1000)
    np.savez_compressed(tmp_path / "file.npz", x=np.zeros(100_000))
    with pytest.raises(ConversionError, match="arrays claim 800"):
        unpickle.read(tmp_path / "file.npz")


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "is empty"), (b"\x00" * 100, "begins with"), (b"PK\x03\x04", "damaged"), (b"(dp0\n.", "begins with"),
     (b"\xff\xd8\xff\xe0JFIF", "begins with"), (b"<!DOCTYPE html>", "begins with")],
)  # fmt: skip
def test_other_files(data, said, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ConversionError, match=said):
        unpickle.read(tmp_path / "file")


def test_no_file(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointNotFoundError, match="There is no file"):
            unpickle.read(path)


# Damage of every kind


def samples(folder):
    content = {"g_ema": dict(STATE), "opts": argparse.Namespace(a=1), "n": np.float32(1), "x": np.arange(4.0)}
    for name in ("zip", "legacy", "pickle4"):
        WRITERS[name](folder / name, content)
        yield folder / name
    np.save(folder / "a.npy", np.arange(40.0))
    np.savez_compressed(folder / "a.npz", x=np.arange(40.0))
    yield from (folder / "a.npy", folder / "a.npz")
    yield foreign.nvidia(foreign.generator(), folder / "nvidia")


def test_truncated_anywhere_it_is_our_error(tmp_path):
    for path in samples(tmp_path):
        data = path.read_bytes()
        step = max(1, len(data) // 30)
        for end in itertools.chain(range(0, len(data) - 1, step), range(len(data) - 20, len(data))):
            path.write_bytes(data[:end])
            with pytest.raises(ConversionError):
                unpickle.read(path)


def test_flipped_bytes_raise_nothing_but_our_error(tmp_path, recwarn):
    chance = random.Random(0)
    outcomes = collections.Counter()
    for path in samples(tmp_path):
        data = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 1, 3, 20))):
                damaged[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(damaged)
            try:
                unpickle.read(path)
                outcomes["read"] += 1  # the flip was in a number
            except FaceEditError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 100 and outcomes["read"] > 20
    assert not (set(os.listdir(tmp_path)) - {"zip", "legacy", "pickle4", "a.npy", "a.npz", "nvidia"})
