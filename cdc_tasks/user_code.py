"""Mistakes in the user's own modules, told as one sentence with file and line instead of a traceback."""

from __future__ import annotations

import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType

__all__ = [
    "TaskModulesError",
    "did_you_mean",
    "import_task_modules",
    "is_missing",
    "mistake",
    "place",
    "similar_module",
]

_OURS: Final = str(Path(__file__).parent)
_LISTENER: Final = str(Path(__file__).parents[1] / "listener")
_EDITED_BY_USERS: Final = str(Path(__file__).parents[1] / "listener" / "routes.py")
_LIBRARIES: Final = tuple({sysconfig.get_path(each) for each in ("stdlib", "purelib", "platlib")})
_PLACED: Final = re.compile(r"\.py:\d+\b")  # `on_change` tells the place of its errors itself
_UNEXPECTED: Final = re.compile(r"unexpected keyword argument '(\w+)'")


class TaskModulesError(CDCError):
    """A module of CDC_TASK_MODULES cannot be imported."""


def import_task_modules(names: Iterable[str]) -> None:
    """Import the modules of CDC_TASK_MODULES; raise TaskModulesError for the first that cannot be imported."""
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if is_missing(error, name):
                raise _missing(name) from error
            raise _broken(name, error) from error
        except (Exception, SystemExit) as error:
            raise _broken(name, error) from error


def _missing(name: str) -> TaskModulesError:
    return TaskModulesError(
        f"CDC_TASK_MODULES names {name}: there is no such module in {Path.cwd()} or on the Python path."
        + similar_module(name),
        hint="Name the modules as Python imports them, comma-separated: CDC_TASK_MODULES=myapp.tasks,myapp.more",
    )


def _broken(name: str, error: BaseException) -> TaskModulesError:
    hint = error.hint if isinstance(error, CDCError) else None
    return TaskModulesError(f"CDC_TASK_MODULES names {name}, which fails: {mistake(error)}", hint=hint)


def mistake(error: BaseException) -> str:
    """Return what went wrong in the user's code, after its file and line: "shop/routes.py:7: NameError: …"."""
    if isinstance(error, CDCError):
        what = error.message
    elif isinstance(error, SyntaxError):
        what = f"{type(error).__name__}: {error.msg}"
    else:
        what = f"{type(error).__name__}: {error}"
    where = "" if _PLACED.search(what) else _place_of(error)
    return f"{where}: {what}" if where else what


def place(code: CodeType) -> str:
    """Return the file and line where a function is defined."""
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def did_you_mean(error: BaseException, parameters: Iterable[str] = ()) -> str | None:
    """Return a hint if a name in the error is close to one that exists: a parameter, or a global of the module."""
    if unexpected := _UNEXPECTED.search(str(error)):
        return _close(unexpected[1], parameters, "{}=")
    if isinstance(error, NameError) and error.name:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        return _close(error.name, [*frame.f_globals, *frame.f_builtins], "{}")
    return None


def is_missing(error: ModuleNotFoundError, module: str) -> bool:
    """Return whether `module` is missing, or a package of it; otherwise something that it imports is."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")


def similar_module(name: str) -> str:
    """Return a sentence with a module that is close to `name`, in the package that it names; empty if there is none."""
    package, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", None) if package else [str(Path.cwd())]
    names = [each.name for each in pkgutil.iter_modules(path or [])]
    close = get_close_matches(last, names, n=1)
    return f" Did you mean {'.'.join(filter(None, (package, close[0])))}?" if close else ""


def _close(name: str, known: Iterable[str], form: str) -> str | None:
    close = get_close_matches(name, known, n=1)
    return f"Did you mean {form.format(close[0])}?" if close else None


def _place_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno or 1}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _is_machinery(each.filename)]
    own = [each for each in frames if not each.filename.startswith(_LIBRARIES)]
    deepest = next(reversed(own or frames), None)
    return f"{_shown(deepest.filename)}:{deepest.lineno}" if deepest else ""


def _is_machinery(file: str) -> bool:
    is_ours = file.startswith((f"{_OURS}{os.sep}", f"{_LISTENER}{os.sep}")) and file != _EDITED_BY_USERS
    return is_ours or file.startswith("<frozen ") or f"{os.sep}importlib{os.sep}" in file


def _shown(file: str) -> str:
    """Return the path, relative if it is below the current directory."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
