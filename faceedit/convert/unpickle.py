"""Read other people's checkpoints without running anything that is in them.

PyTorch's zip and legacy files, NVIDIA's pickles, plain pickles of arrays, ``.npy`` and ``.npz``.
What pickles may build is in `faceedit.convert.builders`. Sizes in headers are held against
the file's own size before anything is allocated.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from faceedit.convert.builders import Fields, Record, Storage, Storages
from faceedit.convert.pickle_machine import Machine
from faceedit.errors import CheckpointNotFoundError, ConversionError

__all__ = ["Fields", "Record", "read"]

_ZIP, _NPY, _PICKLE = b"PK\x03\x04", npy.MAGIC_PREFIX, b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_UNPACKED = 2 * 1024**3  # bytes of a compressed .npz, whose size on disk bounds nothing


def read(path: str | os.PathLike[str]) -> Any:
    """Read a foreign file.

    Args:
        path: its kind is told by its first bytes, not by its name.

    Returns:
        What it holds: tensors on the CPU, numpy arrays, plain containers; `Fields`, a dict, for
        argparse.Namespace and dnnlib.EasyDict; `Record` for objects whose class was in the file.

    Raises:
        CheckpointNotFoundError: no file is there.
        ConversionError: it is damaged, of no known kind, or holds more than data; the message
            names what was refused.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"There is no file {str(path)!r}. Check the path.")
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except ConversionError as error:
        raise ConversionError(f"{str(path)!r} is refused: {error}") from error.__cause__
    except Exception as error:  # damaged bytes can trip a parser up in any way
        raise ConversionError(f"{str(path)!r} is damaged or truncated ({error!r:.200}). Get it again.") from error


def _read(file: BinaryIO, size: int) -> Any:
    start = file.read(8)
    file.seek(0)
    if start.startswith(_ZIP):
        return _read_zip(file, size)
    if start.startswith(_NPY):
        return _read_array(file, size)
    if start.startswith(_PICKLE):
        return _read_pickles(file, size)
    raise ConversionError(
        "it is empty." if not start else
        f"it begins with {start!r}, so it is no PyTorch file (zip or legacy), pickle, .npy or .npz"
    )


# --- PyTorch's zip files and .npz ---------------------------------------------------------------


def _read_zip(file: BinaryIO, size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) == 1:
            return _read_torch_zip(archive, members, pickles[0], size)
        if members and all(name.endswith(".npy") for name in members):
            return _read_npz(archive, members)
    raise ConversionError("it is a zip file, but neither PyTorch's (no data.pkl in it) nor numpy's")


def _read_torch_zip(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], pickle_name: str, size: int
) -> Any:
    root = pickle_name.removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise ConversionError("it is a TorchScript program; only files of tensors (a state_dict) are read")
    for entry in members.values():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise ConversionError(
                f"its part {entry.filename!r} claims {entry.file_size} bytes of a file of {size}, or is "
                "compressed, which PyTorch never does"
            )
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise ConversionError("its numbers are not little-endian; save it again on a little-endian machine")

    def load(key: str, n_bytes: int) -> bytearray:
        entry = members.get(f"{root}data/{key}")
        if entry is None:
            raise ConversionError(f"its storage {key!r} is missing")
        if entry.file_size < n_bytes:
            raise ConversionError(f"its storage {key!r} has {entry.file_size} bytes where {n_bytes} were announced")
        data = bytearray(archive.read(entry))
        return data[:n_bytes] if len(data) > n_bytes else data

    with archive.open(pickle_name) as pickled:
        return Machine(io.BytesIO(pickled.read()), Storages(size, load)).run()


def _read_npz(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, np.ndarray]:
    total = sum(entry.file_size for entry in members.values())
    if total > _MAX_UNPACKED:
        raise ConversionError(f"its arrays claim {total} bytes; up to {_MAX_UNPACKED} are unpacked")
    arrays = {}
    for name, entry in members.items():
        with archive.open(entry) as member:
            data = member.read(entry.file_size)
        arrays[name.removesuffix(".npy")] = _read_array(io.BytesIO(data), len(data))
    return arrays


def _read_array(file: BinaryIO, size: int) -> np.ndarray:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ConversionError(f"its .npy version is {version}; (1, 0) and (2, 0) are read")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, kind = read_header(file)
    if kind.kind not in "biuf":
        what = "pickled objects" if kind.hasobject else f"values of type {kind}"
        raise ConversionError(f"its array holds {what}; only real numbers and booleans are read")
    claimed, there = math.prod(shape) * kind.itemsize, size - file.tell()
    if claimed != there or min(shape, default=0) < 0:
        raise ConversionError(f"its array of shape {shape} takes {claimed} bytes, and {there} are there")
    array = np.frombuffer(bytearray(file.read()), kind)
    return array.reshape(shape, order="F" if fortran else "C")


# --- pickles ------------------------------------------------------------------------------------


def _read_pickles(file: BinaryIO, size: int) -> Any:
    first = Machine(file, load_bytes=_read_storage).run()
    if type(first) is int and first == _LEGACY_MAGIC:
        return _read_legacy(file, size)
    _require_end(file, size)
    return first


def _read_storage(data: bytes) -> Storage:
    """The one storage of a legacy file inside a pickle, as `torch.storage._load_from_bytes` would."""
    file = io.BytesIO(data)
    magic = Machine(file).run()
    if type(magic) is not int or magic != _LEGACY_MAGIC:
        raise ConversionError("a tensor's numbers are in no legacy PyTorch file")
    storage = _read_legacy(file, len(data))
    if not isinstance(storage, Storage):
        raise ConversionError("a tensor's numbers are no storage")
    return storage


def _read_legacy(file: BinaryIO, size: int) -> Any:
    """What follows the magic number: version, system, object, keys, then the storages' bytes."""
    version = Machine(file).run()
    if type(version) is not int or version != _LEGACY_VERSION:
        raise ConversionError(f"its legacy version is {version!r:.50}; {_LEGACY_VERSION} is known")
    system = Machine(file).run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ConversionError("its numbers are not little-endian; save it again on a little-endian machine")
    storages = Storages(size)
    content = Machine(file, storages).run()
    keys = Machine(file).run()
    if type(keys) is not list or len(keys) != len(storages.found) or not all(
        isinstance(key, str) and key in storages.found for key in keys
    ):
        raise ConversionError("its list of storages is not that of its tensors")
    for key in keys:
        storage = storages.found[key]
        count = int.from_bytes(_exactly(file, 8), "little")
        if count != storage.numel:
            raise ConversionError(f"its storage {key!r} has {count} numbers where {storage.numel} were announced")
        storage.fill(bytearray(_exactly(file, storage.n_bytes)))
    _require_end(file, size)
    return content


def _exactly(file: BinaryIO, n: int) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise ConversionError(f"it ends {n - len(data)} bytes too early: it is truncated")
    return data


def _require_end(file: BinaryIO, size: int) -> None:
    if file.tell() != size:
        raise ConversionError(f"{size - file.tell()} bytes follow its last object")
