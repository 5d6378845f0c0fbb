"""A pickle interpreter that can build what `faceedit.convert.builders` has, and nothing else.

Python's own unpickler looks names up and calls what it finds; even with a list of allowed names,
the instructions that set attributes reach whatever was found. This one imports nothing: a name in
the file is only a key into a table of functions that check every argument, and state is only given
to objects that were made here. It works without recursion.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from faceedit.convert.builders import CALLS, CLASSES, LOAD_BYTES, Global, Storage, Storages, build, hashable, resolve
from faceedit.errors import ConversionError

__all__ = ["Machine"]

# Far above any real file (a 1024 px StyleGAN2 with its discriminator has some 20,000), and a bound on
# what a file of nothing but one-byte instructions can make us allocate.
_MAX_INSTRUCTIONS = 10_000_000
_MAX_PROTOCOL = 5


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
            target[hashable(key)] = value

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _add_items(self, _: None) -> None:
        items = self._since_mark()
        if type(self._stack[-1]) is not set:
            raise ConversionError(f"it adds items to a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(map(hashable, items))

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
        self._stack.append(resolve(module, name))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, Global) else f"a {type(function).__name__}"
        if type(arguments) is not tuple or name not in CALLS and name != LOAD_BYTES:
            raise ConversionError(f"it calls {name!r}, which is none of the calls that build tensors and arrays")
        try:
            self._stack.append(self._nested(*arguments) if name == LOAD_BYTES else CALLS[name](*arguments))
        except TypeError as error:
            raise ConversionError(f"it calls {name!r} with arguments that it does not take ({error})") from error

    def _nested(self, data: Any) -> Storage:
        if self._load_bytes is None or not isinstance(data, bytes):
            raise ConversionError(f"it calls {LOAD_BYTES!r} where no tensor can be")
        return self._load_bytes(data)

    def _new_object(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        name = kind.name if isinstance(kind, Global) else f"a {type(kind).__name__}"
        if name not in CLASSES or type(arguments) is not tuple or arguments:
            raise ConversionError(f"it makes an object of {name!r}, which is not allowed")
        self._stack.append(CLASSES[name]())

    def _build(self, _: None) -> None:
        state = self._stack.pop()
        build(self._stack[-1], state)

    def _persistent(self, _: None) -> None:
        if self._storages is None:
            raise ConversionError("it refers to something outside itself")
        self._stack.append(self._storages.get(self._stack.pop()))


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
