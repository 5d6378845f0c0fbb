"""All that a foreign pickle can have built: tensors, numpy arrays, plain containers, inert records.

Each function checks every argument, because the file chooses them. Nothing is allocated that the
file does not pay for in bytes.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faceedit.errors import ConversionError

__all__ = [
    "CALLS", "CLASSES", "LOAD_BYTES", "Fields", "Global", "Record", "Storage", "Storages", "build", "hashable", "resolve",
]  # fmt: skip

_STORAGE_DTYPES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = frozenset(map(str, _STORAGE_DTYPES.values()))
_ARRAY_TYPE = re.compile(r"[biuf][1248]")
_ARRAY_CLASS = "numpy.ndarray"
LOAD_BYTES = "torch.storage._load_from_bytes"
"""The call by which NVIDIA's pickles hold a small legacy file for each tensor."""

_HINTS = {
    "dnnlib.tflib": "It is a TensorFlow network; NVIDIA's stylegan2-ada-pytorch repository turns it "
    "into a PyTorch .pkl with legacy.py.",
    "torch.nn.modules": "It is a whole pickled module; save its state_dict() instead.",
}


class Fields(dict):
    """A mapping that stood in the file as an object: argparse.Namespace, dnnlib.EasyDict."""


class Record:
    """An object of a class that the file brought along. Its code was neither kept nor run.

    Attributes:
        name: of the class, without its module.
        state: what the object held, by attribute.
    """

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name, self.state = name, state

    def __repr__(self) -> str:
        return f"Record({self.name})"


class Storage:
    """A flat run of numbers that tensors are views of; filled when its bytes are reached."""

    __slots__ = ("dtype", "numel", "values", "waiting")

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        self.dtype, self.numel = dtype, numel
        self.values: Tensor | None = None
        self.waiting: list[tuple[Tensor, int, tuple[int, ...], tuple[int, ...]]] = []

    @property
    def n_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def fill(self, data: bytearray) -> None:
        """Take the bytes, and show them to the tensors that wait for them."""
        if len(data) != self.n_bytes:
            raise ConversionError(f"a storage has {len(data)} bytes where {self.n_bytes} were announced")
        if not data:
            self.values = torch.empty(0, dtype=self.dtype)
        elif self.dtype == torch.bool:  # any byte but 0 and 1 would be no valid bool
            self.values = torch.frombuffer(data, dtype=torch.uint8) != 0
        else:
            self.values = torch.frombuffer(data, dtype=self.dtype)
        for tensor, *view in self.waiting:
            tensor.set_(self.values.untyped_storage(), *view)
        self.waiting.clear()

    def view(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        tensor = torch.empty(0, dtype=self.dtype)
        if self.values is None:
            self.waiting.append((tensor, offset, size, stride))
        else:
            tensor.set_(self.values.untyped_storage(), offset, size, stride)
        return tensor


class Storages:
    """The storages of one file, by key. Together they cannot be larger than the file.

    Args:
        file_size: in bytes.
        load: gives the bytes of a storage when it is first named; None where they come later.
    """

    def __init__(self, file_size: int, load: Callable[[str, int], bytearray] | None = None) -> None:
        self.file_size, self._load = file_size, load
        self._budget = file_size
        self.found: dict[str, Storage] = {}

    def get(self, reference: Any) -> Storage:
        """The storage that a persistent id stands for."""
        if not (isinstance(reference, tuple) and reference):
            raise ConversionError("it refers to something outside itself that is no tensor storage")
        if reference[0] == "module":
            raise ConversionError("it holds a whole pickled module with its source; save its state_dict() instead")
        view = reference[5:]
        if reference[0] != "storage" or len(reference) not in (5, 6) or view not in ((), (None,)):
            raise ConversionError("it refers to a tensor storage in a way that no known release of PyTorch wrote")
        _, kind, key, _, numel = reference[:5]
        dtype = _STORAGE_DTYPES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Global) else None
        if dtype is None or not isinstance(key, str) or not _is_count(numel):
            raise ConversionError("it describes a tensor storage by values of the wrong type")
        if key in self.found:
            storage = self.found[key]
            if (storage.dtype, storage.numel) != (dtype, numel):
                raise ConversionError(f"storage {key!r} is described in two ways")
            return storage
        storage = Storage(dtype, numel)
        self._budget -= storage.n_bytes
        if self._budget < 0:
            raise ConversionError(
                f"storage {key!r} and those before it claim more than the {self.file_size} bytes of the "
                "file: it is truncated or forged"
            )
        self.found[key] = storage
        if self._load is not None:
            storage.fill(self._load(key, storage.n_bytes))
        return storage


class Global:
    """A name that stands in the file. It is not looked up anywhere but in this module's tables."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _ArrayType:
    """A numpy dtype on its way: the file gives its byte order after it has made it."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype) -> None:
        self.value = value


def hashable(key: Any) -> str | int | float | None:
    """A key of a dictionary or set. Hashing a tuple would recurse into it as deep as the file likes."""
    if not isinstance(key, (str, int, float, type(None))):
        raise ConversionError(f"it has a dictionary or set with a {type(key).__name__} as key")
    return key


def _is_storage_class(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return module in ("torch", "torch.cuda", "torch.storage") and kind in _STORAGE_DTYPES


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and len(value) <= 32 and all(map(_is_count, value))


def _check_array(shape: Any, kind: Any, data: Any) -> None:
    if not isinstance(kind, _ArrayType) or not _is_shape(shape) or not isinstance(data, (bytes, bytearray)):
        raise ConversionError("an array is described by values of the wrong type")
    if math.prod(shape) * kind.value.itemsize != len(data):
        raise ConversionError(f"an array of shape {shape} and type {kind.value} has {len(data)} bytes")


def resolve(module: Any, name: Any) -> Global | str:
    """What a name in the file stands for: a key into the tables here, or the name of a dtype.

    Raises:
        ConversionError: it is not one of those that build tensors, arrays and plain containers.
    """
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
    full = full.replace("numpy._core.", "numpy.core.")
    if full in _DTYPES:
        return full.removeprefix("torch.")
    if full in CALLS or full in CLASSES or full in (LOAD_BYTES, _ARRAY_CLASS) or _is_storage_class(full):
        return Global(full)
    hint = next((hint for start, hint in _HINTS.items() if full.startswith(start)), "")
    raise ConversionError(
        f"it refers to {full!r}, and only tensors, arrays and plain containers are built; "
        f"nothing of the file was run. {hint}".strip()
    )


def build(target: Any, state: Any) -> None:
    """Give an object the state that the file has for it; none of the file's choosing is called.

    Raises:
        ConversionError: it is not one of the kinds whose files have state.
    """
    if type(target) is OrderedDict and isinstance(state, dict):
        return  # a state dict's _metadata: versions of layers, for modules that we do not have
    if type(target) is Fields and isinstance(state, dict):
        target.update(state)
    elif type(target) is _ArrayType and isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
        target.value = target.value.newbyteorder(state[1])
    elif type(target) is np.ndarray and isinstance(state, tuple) and len(state) == 5:
        _, shape, kind, fortran, data = state
        _check_array(shape, kind, data)
        # numpy's own way of filling an array that was made empty; every part of it was checked.
        target.__setstate__((1, shape, kind.value, bool(fortran), data))
    else:
        raise ConversionError(f"it gives state to a {type(target).__name__}, which is not allowed")


def _ordered_dict(items: Any = ()) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    if type(items) not in (list, tuple) or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in items):
        raise ConversionError("an OrderedDict is made from something other than pairs")
    for key, value in items:
        made[hashable(key)] = value
    return made


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise ConversionError("a set is made from something other than a list")
    return set(map(hashable, items))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ConversionError("a tensor is built on something that is no storage")
    if not (_is_count(offset) and _is_shape(size) and _is_shape(stride) and len(size) == len(stride)):
        raise ConversionError("a tensor's offset, size or stride is not made of whole numbers from 0")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else 0
    # The second bound forbids strides of 0, with which a few bytes would become terabytes.
    if last >= max(storage.numel, 1) or math.prod(size) > storage.numel or offset > storage.numel:
        raise ConversionError(f"a tensor of size {size} reaches beyond its storage of {storage.numel} numbers")
    return storage.view(offset, size, stride)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ConversionError("a parameter is built on something that is no tensor")
    return data


def _size(numbers: Any = ()) -> tuple[int, ...]:
    if not _is_shape(tuple(numbers)):
        raise ConversionError("a torch.Size is not made of whole numbers")
    return tuple(numbers)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or _is_count(index)):
        raise ConversionError("a torch.device is not made of a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _array_type(code: Any, *_: Any) -> _ArrayType:
    if not isinstance(code, str) or not _ARRAY_TYPE.fullmatch(code):
        raise ConversionError(f"an array's type is {code!r}; only real numbers and booleans are read")
    return _ArrayType(np.dtype(code))


def _array(kind: Any, *_: Any) -> np.ndarray:
    if not isinstance(kind, Global) or kind.name != _ARRAY_CLASS:
        raise ConversionError("an array is made of a class other than numpy.ndarray")
    return np.empty(0, np.uint8)


def _array_from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    _check_array(shape, kind, data)
    return np.frombuffer(data, kind.value).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: Any, data: Any) -> bool | int | float:
    data = data.encode("latin-1") if isinstance(data, str) else data
    _check_array((), kind, data)
    return np.frombuffer(data, kind.value)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ConversionError("it calls '_codecs.encode' for something other than bytes as text")
    return text.encode("latin-1")


def _record(meta: Any) -> Record:
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict) or not isinstance(meta.get("class_name"), str):
        raise ConversionError("an object that NVIDIA's code saved has no class name or no state")
    return Record(meta["class_name"], state)


CLASSES: Mapping[str, Callable[[], dict[Any, Any]]] = {
    "collections.OrderedDict": OrderedDict,
    "argparse.Namespace": Fields,
    "dnnlib.util.EasyDict": Fields,
    "dnnlib.EasyDict": Fields,
}

CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "numpy.dtype": _array_type,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "_codecs.encode": _encode,
    "torch_utils.persistence._reconstruct_persistent_obj": _record,
}
