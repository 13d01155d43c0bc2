"""What a transform does, as a key for cached features: its code, its parameters, and what they refer to."""

from __future__ import annotations

import dis
import functools
import hashlib
import re
import sys
import types
import uuid
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch

from adapt.data.decoding.whose_code import library_version

_tokens: dict[int, tuple[Any, str]] = {}  # kept alive, so that no later object takes over an id


def transform_key(transform: Any) -> str:
    """A key that two transforms share only if they do the same, in other processes too.

    Functions are known by their code and all that it refers to, objects by their class and state, libraries by their
    version. An object with hidden state, such as an extension's, stands for itself alone, in this process.
    """
    try:
        return _Description().of(transform).hex()
    except RecursionError:
        return _token(transform)


def _token(value: Any) -> str:
    return _tokens.setdefault(id(value), (value, uuid.uuid4().hex))[1]


class _Description:
    """One pass over a transform."""

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}  # the objects that are being described, and how deep
        self._done: dict[int, tuple[bytes, Any]] = {}  # kept alive: no other object may take an id meanwhile

    def of(self, value: Any) -> bytes:
        """A digest of `value`; inside itself, how far out it is."""
        if isinstance(value, _PLAIN) and type(value).__module__ == "builtins":
            return _digest(type(value).__name__, repr(value))
        if id(value) in self._inside:
            return _digest("itself", str(len(self._inside) - self._inside[id(value)]))
        if id(value) not in self._done:
            self._inside[id(value)] = len(self._inside)
            self._done[id(value)] = _digest(*self._parts(value)), value
            del self._inside[id(value)]
        return self._done[id(value)][0]

    def _parts(self, value: Any) -> Iterator[str | bytes]:
        yield type(value).__qualname__
        if isinstance(value, types.CodeType):
            yield from self._code(value)
        elif isinstance(value, types.ModuleType | type) or _is_library_function(value):
            yield from self._named(value)
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType | types.BuiltinMethodType):
            yield from (value.__name__, self.of(value.__self__), self.of(getattr(value, "__func__", None)))
        elif isinstance(value, staticmethod | classmethod | functools.partial | property):
            parts = ("__func__", "func", "args", "keywords", "fget")
            yield from (self.of(getattr(value, part, None)) for part in parts)
        elif isinstance(value, Enum):
            yield from (self.of(type(value)), value.name)
        else:
            yield from self._data(value)

    def _data(self, value: Any) -> Iterator[str | bytes]:
        if isinstance(value, torch.Tensor):
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            yield from (str(value.dtype), str(tuple(value.shape)), raw.numpy().tobytes())
        elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            yield from (str(value.dtype), str(value.shape), value.tobytes())
        elif isinstance(value, torch.dtype | torch.device | re.Pattern | np.dtype):
            yield repr(value)
        elif isinstance(value, dict):
            yield from (self.of(part) for pair in value.items() for part in pair)
            yield from self._state(value)
        elif isinstance(value, set | frozenset):
            yield from sorted(_Description().of(part) for part in value)
            yield from self._state(value)
        elif isinstance(value, list | tuple):
            yield from map(self.of, value)
            yield from self._state(value)
        else:
            if _hides(type(value)):
                yield _token(value)
            yield from self._state(value)

    def _state(self, value: Any) -> Iterator[bytes]:
        """The class and the attributes of an object; those of a plain list have none."""
        if type(value).__module__ == "builtins":
            return
        yield self.of(type(value))
        yield self.of(dict(sorted(getattr(value, "__dict__", {}).items())))
        slots = [name for cls in type(value).__mro__ for name in _slots(cls)]
        yield self.of([(name, getattr(value, name, None)) for name in slots if name not in ("__dict__", "__weakref__")])

    def _named(self, value: Any) -> Iterator[str | bytes]:
        """A library's module, class or function by its version; a class of the user's by all that is in it."""
        module = str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)
        inner = "" if isinstance(value, types.ModuleType) else value.__qualname__  # modules may answer to any name
        version = library_version(module)
        yield from (module, inner, version or "")
        if isinstance(value, type) and version is None:
            yield from map(self.of, value.__bases__)
            inside = {name: part for name, part in vars(value).items() if name not in _BOOKKEEPING}
            yield self.of({name: part for name, part in inside.items() if not isinstance(part, _DESCRIPTORS)})

    def _function(self, function: types.FunctionType) -> Iterator[bytes]:
        yield self.of(function.__code__)
        yield self.of([function.__defaults__, function.__kwdefaults__, getattr(function, "__dict__", {})])
        for cell in function.__closure__ or ():
            yield self.of(cell.cell_contents if _is_filled(cell) else "empty")
        for name, value in sorted(_references(function.__code__, function.__globals__).items()):
            yield from (name.encode(), self.of(value))

    def _code(self, code: types.CodeType) -> Iterator[str | bytes]:
        yield code.co_code
        yield str((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_kwonlyargcount))
        yield from map(self.of, code.co_consts)


_PLAIN = None | bool | int | float | complex | str | bytes | range | slice
_BOOKKEEPING = {"__dict__", "__weakref__", "__module__", "__doc__", "__qualname__", "__firstlineno__"}
_READ_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType)


def _digest(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        encoded = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.digest()


def _references(code: types.CodeType, names: dict[str, Any]) -> dict[str, Any]:
    """What the code reads outside itself: globals, and of the user's own modules the attributes that it may read."""
    found: dict[str, Any] = {}
    instructions = [each for part in _with_inner(code) for each in dis.get_instructions(part)]
    attributes = {str(each.argval) for each in instructions if each.opname in _READ_ATTRIBUTE}
    for each in instructions:
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME") and each.argval in names:
            found[each.argval] = names[each.argval]
        if each.opname == "IMPORT_NAME":
            found[each.argval] = sys.modules.get(each.argval, _token(code))
    return found | _inside(found, attributes)


def _inside(found: dict[str, Any], attributes: set[str]) -> dict[str, Any]:
    """The attributes of modules of the user's own, and of modules in them, which no version stands for."""
    inner = {
        f"{name}.{attribute}": getattr(module, attribute)
        for name, module in found.items()
        if isinstance(module, types.ModuleType) and library_version(module.__name__) is None
        for attribute in attributes - set(name.split("."))
        if hasattr(module, attribute)
    }
    return inner | _inside(inner, attributes) if inner else inner


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _is_library_function(value: Any) -> bool:
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType | None)
    made_at_run_time = "<locals>" in getattr(value, "__qualname__", "")  # and holds what it was made with
    return (
        isinstance(value, types.FunctionType)
        and not made_at_run_time
        and library_version(str(value.__module__)) is not None
    )


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _hides(cls: type) -> bool:
    """Whether objects of `cls` keep state in C, which no attribute shows."""
    for base in cls.__mro__[:-1]:
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None) or ""
        in_c = base.__module__ in sys.builtin_module_names or bool(file and not file.endswith((".py", ".pyc")))
        if (in_c and base.__module__ != "__main__") or not base.__flags__ & _HEAP:
            return True
    return False


_HEAP = 1 << 9  # a class that was made by Python code, or could have been
