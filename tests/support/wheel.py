"""Environments with the project installed as a team would: from the wheel, with chosen extras."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["build", "environment_with", "site_of"]

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_PROJECT: Final = "cdc-tasks"
_SCRIPT: Final = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""


def build(directory: Path) -> Path:
    """Build the wheel into this directory, without the network; return it.

    CDC_TEST_WHEEL names one that was built earlier: the oldest supported packages cannot build it.
    """
    if given := os.environ.get("CDC_TEST_WHEEL"):
        return Path(given)
    command = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(directory),
    ]
    subprocess.run([sys.executable, *command, str(_CHECKOUT)], check=True)
    (wheel,) = directory.glob("*.whl")
    return wheel


def environment_with(wheel: Path, home: Path, *, extras: Iterable[str] | None = None) -> Path:
    """Create an environment with the wheel, and return its interpreter.

    The dependencies are those of this environment: all, or only those of the core and of these extras.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    site = site_of(python)
    with zipfile.ZipFile(wheel) as files:
        files.extractall(site)
    if extras is None:
        # This environment's packages, without its link to the repository, which is in a separate .pth file.
        (site / "dependencies.pth").write_text("\n".join(_sites()))
    else:
        for path in _files_of(_closure(extras)):
            (site / path.name).symlink_to(path)
    _write_programs(python)
    return python


def _sites() -> list[str]:
    """Return the package directories of this environment: more than one in those of scripts/test-versions."""
    return [path for path in sys.path if Path(path).name == "site-packages"]


def site_of(python: Path) -> Path:
    """Return the package directory of an environment."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return site


def _closure(extras: Iterable[str]) -> set[str]:
    """Return the distributions that the project needs with these extras, and their dependencies."""
    found: set[str] = set()
    open_: list[tuple[str, frozenset[str]]] = [(_PROJECT, frozenset(extras))]
    while open_:
        name, wanted = open_.pop()
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            is_needed = needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ["", *wanted]
            )
            if is_needed and needed.name not in found:
                found.add(needed.name)
                open_.append((needed.name, frozenset(needed.extras)))
    return found - {_PROJECT}


def _files_of(names: Iterable[str]) -> Iterator[Path]:
    """Yield the files and directories at the top of site-packages that belong to these distributions."""
    site = Path(sysconfig.get_path("purelib"))
    tops = {file.parts[0] for name in names for file in metadata.files(name) or () if file.parts[0] != ".."}
    yield from (site / top for top in sorted(tops - {"__pycache__"}))


def _write_programs(python: Path) -> None:
    """Write the programs of the wheel, and `celery`, as pip would."""
    site = site_of(python)
    programs = {"celery": "celery.__main__:main"}
    for line in next(site.glob("cdc_tasks-*.dist-info/entry_points.txt")).read_text().splitlines():
        name, equals, place = line.partition(" = ")
        if equals:
            programs[name] = place
    for name, place in programs.items():
        module, _, function = place.partition(":")
        program = python.parent / name
        program.write_text(_SCRIPT.format(python=python, module=module, function=function))
        program.chmod(0o755)
