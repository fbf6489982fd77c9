"""Mistakes in the user's own modules, as one sentence with file and line instead of a traceback."""

from __future__ import annotations

import pkgutil
import re
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cdc_tasks.errors import CDCError
from cdc_tasks.source_lines import place_of_error

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "TaskModulesError",
    "did_you_mean",
    "import_task_modules",
    "is_missing",
    "mistake",
    "similar_module",
]

_PLACED: Final = re.compile(r"\.py:\d+\b")  # errors of `on_change` already have their place
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
    """Return the error in the user's code, after its file and line: "shop/routes.py:7: NameError: …"."""
    if isinstance(error, CDCError):
        what = error.message
    elif isinstance(error, SyntaxError):
        what = f"{type(error).__name__}: {error.msg}"
    else:
        what = f"{type(error).__name__}: {error}"
    where = "" if _PLACED.search(what) else place_of_error(error)
    return f"{where}: {what}" if where else what


def did_you_mean(error: BaseException, parameters: Iterable[str] = ()) -> str | None:
    """Return a hint if a name in the error is close to an existing one: a parameter, or a global of the module."""
    if unexpected := _UNEXPECTED.search(str(error)):
        return _close(unexpected[1], parameters, "{}=")
    if isinstance(error, NameError) and error.name:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        return _close(error.name, [*frame.f_globals, *frame.f_builtins], "{}")
    return None


def is_missing(error: ModuleNotFoundError, module: str) -> bool:
    """Return whether `module` itself or one of its packages is missing, not a module that it imports."""
    return error.name is not None and f"{module}.".startswith(f"{error.name}.")


def similar_module(name: str) -> str:
    """Return a sentence with a module that is close to `name`, in the same package; empty if there is none."""
    package, _, last = name.rpartition(".")
    path = getattr(sys.modules.get(package), "__path__", None) if package else [str(Path.cwd())]
    names = [each.name for each in pkgutil.iter_modules(path or [])]
    close = get_close_matches(last, names, n=1)
    return f" Did you mean {'.'.join(filter(None, (package, close[0])))}?" if close else ""


def _close(name: str, known: Iterable[str], form: str) -> str | None:
    close = get_close_matches(name, known, n=1)
    return f"Did you mean {form.format(close[0])}?" if close else None
