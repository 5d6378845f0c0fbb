"""A pickle interpreter that can build tensors, arrays and plain containers, and nothing else.

Python's own unpickler looks names up and calls what it finds; even with a list of allowed names,
the instructions that set attributes reach whatever was found. This one imports nothing. A name in
the file is only a key into the table below, the few calls are functions of this module that check
every argument, and state is only ever given to objects made here. It works without recursion, and
nothing is allocated that the file does not pay for in bytes.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from faceedit.errors import ConversionError

__all__ = ["Fields", "Machine", "Record", "Storage", "Storages"]

# Far above any real file (a 1024 px StyleGAN2 with its discriminator has some 20,000), and a bound on
# what a file of nothing but one-byte instructions can make us allocate.
_MAX_INSTRUCTIONS = 10_000_000
_MAX_PROTOCOL = 5

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
        dtype = _STORAGE_DTYPES.get(kind.name.rpartition(".")[2]) if isinstance(kind, _Global) else None
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


class _Global:
    """A name that stands in the file. It is not looked up anywhere but in this module's tables."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _ArrayType:
    """A numpy dtype on its way: the file gives its byte order after it has made it."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype) -> None:
        self.value = value


class Machine:
    """Runs one pickle after the other from a binary file.

    Args:
        file: read from its present position.
        storages: where tensors find their numbers; None where there can be none.
        load_bytes: reads the small legacy file that NVIDIA's pickles hold for each tensor; None
            refuses those, which keeps such files from being nested.
    """

    def __init__(
        self,
        file: BinaryIO,
        storages: Storages | None = None,
        load_bytes: Callable[[bytes], Storage] | None = None,
    ) -> None:
        self._file, self._storages, self._load_bytes = file, storages, load_bytes
        self._left = _MAX_INSTRUCTIONS

    def run(self) -> Any:
        """The next object. The file then stands right behind it.

        Raises:
            ConversionError: for a name or an instruction that is not allowed.
            Exception: of any kind, for damaged input.
        """
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(self._file):
            self._left -= 1
            if self._left < 0:
                raise ConversionError(f"it has more than {_MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                (result,) = self._stack
                if self._below:
                    raise ConversionError("it ends inside a list")
                return result
            if opcode.name in _PUSHED:
                self._stack.append(argument)
            elif opcode.name in _STEPS:
                _STEPS[opcode.name](self, argument)
            else:
                raise ConversionError(
                    f"it uses the pickle instruction {opcode.name}, which no file of tensors and plain containers needs"
                )
        raise ConversionError("it ends before its pickle does")

    # --- instructions -----------------------------------------------------------------------

    def _proto(self, version: int) -> None:
        if version > _MAX_PROTOCOL:
            raise ConversionError(f"its pickle protocol is {version}; up to {_MAX_PROTOCOL} are known")

    def _frame(self, _: int) -> None:
        pass  # only a hint on how much to read at once

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, _: None) -> None:
        self._stack.pop()

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _tuple(self, _: None) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, n: int) -> None:
        items = [self._stack.pop() for _ in range(n)]
        self._stack.append(tuple(reversed(items)))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ConversionError(f"it appends to a {type(target).__name__}")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ConversionError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2]):
            target[_hashable(key)] = value

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _add_items(self, _: None) -> None:
        items = self._since_mark()
        if type(self._stack[-1]) is not set:
            raise ConversionError(f"it adds items to a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(map(_hashable, items))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _global(self, names: str) -> None:
        self._name(*names.split(" ", 1))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is no text"
        full = full.replace("numpy._core.", "numpy.core.")
        if full in _DTYPES:
            self._stack.append(full.removeprefix("torch."))
            return
        if full not in _CALLS and full not in _CLASSES and full != _ARRAY_CLASS and not _is_storage_class(full):
            hint = next((hint for start, hint in _HINTS.items() if full.startswith(start)), "")
            raise ConversionError(
                f"it refers to {full!r}, and only tensors, arrays and plain containers are built; "
                f"nothing of the file was run. {hint}".strip()
            )
        self._stack.append(_Global(full))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, _Global) else f"a {type(function).__name__}"
        if name not in _CALLS or type(arguments) is not tuple:
            raise ConversionError(f"it calls {name!r}, which is none of the calls that build tensors and arrays")
        try:
            self._stack.append(_CALLS[name](self, *arguments))
        except TypeError as error:
            raise ConversionError(f"it calls {name!r} with arguments that it does not take ({error})") from error

    def _new_object(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        name = kind.name if isinstance(kind, _Global) else f"a {type(kind).__name__}"
        if name not in _CLASSES or type(arguments) is not tuple or arguments:
            raise ConversionError(f"it makes an object of {name!r}, which is not allowed")
        self._stack.append(_CLASSES[name]())

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is OrderedDict and isinstance(state, dict):
            pass  # a state dict's _metadata: versions of layers, for modules that we do not have
        elif type(target) is Fields and isinstance(state, dict):
            target.update(state)
        elif type(target) is _ArrayType and isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
            target.value = target.value.newbyteorder(state[1])
        elif type(target) is np.ndarray and isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, fortran, data = state
            _check_array(shape, kind, data)
            target.__setstate__((1, shape, kind.value, bool(fortran), data))
        else:
            raise ConversionError(f"it gives state to a {type(target).__name__}, which is not allowed")

    def _persistent(self, _: None) -> None:
        if self._storages is None:
            raise ConversionError("it refers to something outside itself")
        self._stack.append(self._storages.get(self._stack.pop()))

    # --- calls ------------------------------------------------------------------------------

    def _ordered_dict(self, items: list[Any] | None = None) -> OrderedDict[Any, Any]:
        made: OrderedDict[Any, Any] = OrderedDict()
        if items is not None:
            if type(items) is not list or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in items):
                raise ConversionError("an OrderedDict is made from something other than pairs")
            self._stack.append(made)
            self._set_items([part for pair in items for part in pair])
            self._stack.pop()
        return made

    def _set(self, items: Any = ()) -> set[Any]:
        if type(items) not in (list, tuple):
            raise ConversionError("a set is made from something other than a list")
        return set(map(_hashable, items))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if not isinstance(storage, Storage):
            raise ConversionError("a tensor is built on something that is no storage")
        if not (_is_count(offset) and _is_shape(size) and _is_shape(stride) and len(size) == len(stride)):
            raise ConversionError("a tensor's offset, size or stride is not made of whole numbers from 0")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if all(size) else 0
        # The second bound forbids strides of 0, with which a few bytes would become terabytes.
        if last >= max(storage.numel, 1) or math.prod(size) > storage.numel or offset > storage.numel:
            raise ConversionError(f"a tensor of size {size} reaches beyond its storage of {storage.numel} numbers")
        return storage.view(offset, size, stride)

    def _parameter(self, data: Any, *_: Any) -> Tensor:
        if not isinstance(data, Tensor):
            raise ConversionError("a parameter is built on something that is no tensor")
        return data

    def _size(self, numbers: Any = ()) -> tuple[int, ...]:
        if not _is_shape(tuple(numbers)):
            raise ConversionError("a torch.Size is not made of whole numbers")
        return tuple(numbers)

    def _device(self, kind: Any, index: Any = None) -> str:
        if not isinstance(kind, str) or not (index is None or _is_count(index)):
            raise ConversionError("a torch.device is not made of a name and a number")
        return kind if index is None else f"{kind}:{index}"

    def _nested(self, data: Any) -> Storage:
        if self._load_bytes is None or not isinstance(data, bytes):
            raise ConversionError("it calls 'torch.storage._load_from_bytes' where no tensor can be")
        return self._load_bytes(data)

    def _array_type(self, code: Any, *_: Any) -> _ArrayType:
        if not isinstance(code, str) or not _ARRAY_TYPE.fullmatch(code):
            raise ConversionError(f"an array's type is {code!r}; only real numbers and booleans are read")
        return _ArrayType(np.dtype(code))

    def _array(self, kind: Any, *_: Any) -> np.ndarray:
        if not isinstance(kind, _Global) or kind.name != _ARRAY_CLASS:
            raise ConversionError("an array is made of a class other than numpy.ndarray")
        return np.empty(0, np.uint8)

    def _array_from_buffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        _check_array(shape, kind, data)
        return np.frombuffer(data, kind.value).reshape(shape, order="F" if order == "F" else "C")

    def _scalar(self, kind: Any, data: Any) -> bool | int | float:
        data = data.encode("latin-1") if isinstance(data, str) else data
        _check_array((), kind, data)
        return np.frombuffer(data, kind.value)[0].item()

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise ConversionError("it calls '_codecs.encode' for something other than bytes as text")
        return text.encode("latin-1")

    def _record(self, meta: Any) -> Record:
        state = meta.get("state") if isinstance(meta, dict) else None
        if not isinstance(state, dict) or not isinstance(meta.get("class_name"), str):
            raise ConversionError("an object that NVIDIA's code saved has no class name or no state")
        return Record(meta["class_name"], state)


def _hashable(key: Any) -> str | int | float | None:
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


_CLASSES: Mapping[str, Callable[[], dict[Any, Any]]] = {
    "collections.OrderedDict": OrderedDict,
    "argparse.Namespace": Fields,
    "dnnlib.util.EasyDict": Fields,
    "dnnlib.EasyDict": Fields,
}

_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": Machine._ordered_dict,
    "builtins.set": Machine._set,
    "__builtin__.set": Machine._set,
    "torch._utils._rebuild_tensor": Machine._tensor,
    "torch._utils._rebuild_tensor_v2": Machine._tensor,
    "torch._utils._rebuild_parameter": Machine._parameter,
    "torch._utils._rebuild_parameter_with_state": Machine._parameter,
    "torch.Size": Machine._size,
    "torch.device": Machine._device,
    "torch.storage._load_from_bytes": Machine._nested,
    "numpy.dtype": Machine._array_type,
    "numpy.core.multiarray._reconstruct": Machine._array,
    "numpy.core.multiarray.scalar": Machine._scalar,
    "numpy.core.numeric._frombuffer": Machine._array_from_buffer,
    "_codecs.encode": Machine._encode,
    "torch_utils.persistence._reconstruct_persistent_obj": Machine._record,
}

# Instructions whose argument is the value itself.
_PUSHED = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING BYTEARRAY8".split()
)

_STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine._proto,
    "FRAME": Machine._frame,
    "NONE": lambda m, _: m._stack.append(None),
    "NEWTRUE": lambda m, _: m._stack.append(True),
    "NEWFALSE": lambda m, _: m._stack.append(False),
    "EMPTY_LIST": lambda m, _: m._stack.append([]),
    "EMPTY_DICT": lambda m, _: m._stack.append({}),
    "EMPTY_SET": lambda m, _: m._stack.append(set()),
    "ADDITEMS": Machine._add_items,
    "EMPTY_TUPLE": lambda m, _: m._stack.append(()),
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": Machine._pop_mark,
    "TUPLE": Machine._tuple,
    "TUPLE1": lambda m, _: m._tuple_of(1),
    "TUPLE2": lambda m, _: m._tuple_of(2),
    "TUPLE3": lambda m, _: m._tuple_of(3),
    "APPEND": lambda m, _: m._append([m._stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._since_mark()),
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda m, _: m._set_items(m._since_mark()),
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._new_object,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
}
