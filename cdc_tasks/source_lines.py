"""Places in a user's code, as `orders/cdc.py:14`: a function, a call, an error, or the executed `return`."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import currentframe, unwrap
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

__all__ = [
    "called_with_line",
    "calling_place",
    "named",
    "place",
    "place_of_error",
    "place_of_function",
    "shown_place",
    "standing_at",
]

T = TypeVar("T")

_OURS: Final = str(Path(__file__).parent)
_LISTENER: Final = str(Path(__file__).parents[1] / "listener")
_EDITED_BY_USERS: Final = str(Path(__file__).parents[1] / "listener" / "routes.py")
_LIBRARIES: Final = tuple({sysconfig.get_path(each) for each in ("stdlib", "purelib", "platlib")})

_standing_at: ContextVar[str | None] = ContextVar("standing_at", default=None)


def place(code: CodeType) -> str:
    """Return the file and line where a function is defined."""
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def place_of_function(function: Any) -> str:
    """Return the file and line of a function, a method or a callable object; empty if it is not in Python."""
    code = _code_of(function)
    return "" if code is None else place(code)


def named(function: Callable[..., Any]) -> str:
    """Return a readable name: a lambda's place, another function's name and place, or the text of one of ours."""
    if isinstance(function, partial):
        return named(function.func)
    where = place_of_function(function)
    name: str | None = getattr(function, "__qualname__", None)
    if name is None:  # a callable object
        return f"{type(function).__qualname__} ({where})" if where else repr(function)
    if name.endswith("<lambda>") and where:
        return where
    short = name.rpartition(".<locals>.")[2]
    return f"{short} ({where})" if where else short


def place_of_error(error: BaseException) -> str:
    """Return the file and line in a user's code, or in a library, that raised the error; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno or 1}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_machinery(each.filename)]
    own = [each for each in frames if not each.filename.startswith(_LIBRARIES)]
    deepest = next(reversed(own or frames), None)
    return f"{_shown(deepest.filename)}:{deepest.lineno}" if deepest else ""


def calling_place() -> str:
    """Return the file and line that called us, for `shown_place`, or that of `standing_at`; empty if it is ours."""
    if (given := _standing_at.get()) is not None:
        return given
    frame = currentframe()
    while frame is not None and _is_machinery(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""


@contextmanager
def standing_at(where: str) -> Iterator[None]:
    """Make `calling_place` return this in the block, for a call that is made later than it was written."""
    token = _standing_at.set(where)
    try:
        yield
    finally:
        _standing_at.reset(token)


def shown_place(where: str) -> str:
    """Return a place with its path relative to the current directory, if it is below that."""
    file, _, line = where.rpartition(":")
    return f"{_shown(file)}:{line}" if file else where


def called_with_line(function: Callable[..., T], *arguments: Any) -> tuple[T, str]:
    """Call a function; return its result, and the file and line of the `return` that was executed.

    The place is empty if the function is ours, or not in Python. Raises what it raises. Slow: Python traces the call.
    """
    code, returned_at = _code_of(function), 0

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        return note if frame.f_code is code else None

    def note(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal returned_at
        if event == "return":
            returned_at = frame.f_lineno
        return note

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = function(*arguments)
    finally:
        sys.settrace(before)
    if code is None or not returned_at:
        return result, place_of_function(function)
    return result, f"{_shown(code.co_filename)}:{returned_at}"


def _code_of(function: Any) -> CodeType | None:
    """Return the code that the user wrote: not ours, and not a decorator's that keeps `__wrapped__`."""
    while isinstance(function, partial):
        function = function.func
    found = unwrap(getattr(function, "__func__", function))
    code = getattr(found, "__code__", None) or _code_of_class(type(function))
    return code if isinstance(code, CodeType) and not _is_machinery(code.co_filename) else None


def _code_of_class(kind: type) -> Any:
    """Return the code that runs when one of the class's objects is called."""
    call: Any = vars(kind).get("__call__") or getattr(kind, "__call__")  # noqa: B004, B009 - the method is wanted
    return getattr(unwrap(call), "__code__", None)


def _is_machinery(file: str) -> bool:
    is_ours = file.startswith((f"{_OURS}{os.sep}", f"{_LISTENER}{os.sep}")) and file != _EDITED_BY_USERS
    return is_ours or file.startswith("<frozen ") or f"{os.sep}importlib{os.sep}" in file


def _shown(file: str) -> str:
    """Return the path, relative if it is below the current directory."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
