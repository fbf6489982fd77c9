"""The programs `cdc-listener` and `cdc-tasks`. They work even if an application has its own package `listener`.

`python -m listener` runs the first package `listener` that Python finds, which may be the application's. The programs
use ours, which is installed next to `cdc_tasks`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final

__all__ = ["listener", "tasks"]

_LISTENER: Final = Path(__file__).resolve().parents[1] / "listener"


def listener() -> None:
    """Run `cdc-listener`: the same commands as `python -m listener`."""
    package = _load_ours()
    _add_working_directory()
    # Modules of an application's package `listener` are found too, unless ours has one of that name.
    package.__path__ += [str(path) for path in _others_of_that_name()]
    import_module("listener.cli.commands").main()


def tasks() -> None:
    """Run `cdc-tasks`: the same commands as `python -m cdc_tasks`."""
    _add_working_directory()
    import_module("cdc_tasks.cli.commands").main()


def _load_ours() -> Any:
    spec = spec_from_file_location(
        "listener", _LISTENER / "__init__.py", submodule_search_locations=[str(_LISTENER)]
    )
    if spec is None or spec.loader is None:  # pragma: no cover  # it is a .py file
        raise ImportError(f"{_LISTENER} is not a package")
    package = module_from_spec(spec)
    sys.modules["listener"] = package
    spec.loader.exec_module(package)
    return package


def _add_working_directory() -> None:
    """Make modules of the working directory importable, as `python -m` and `celery -A` do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _others_of_that_name() -> list[Path]:
    found = dict.fromkeys(Path(place or ".").resolve() / "listener" for place in sys.path)
    return [path for path in found if path != _LISTENER and path.is_dir()]
