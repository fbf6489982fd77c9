"""What is imported is declared, and what is built is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cdc_tasks.extras import EXTRAS

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHECKOUT = Path(__file__).resolve().parents[2]
_FULL_VERSION = re.compile(r":\d+\.\d+\.?\d*\b")


def _declared() -> dict[str, Requirement]:
    """Return what the core and the extras for users need."""
    project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][extra] for extra in (*EXTRAS, "django")]
    found = map(Requirement, chain(project["dependencies"], *extras))
    return {canonicalize_name(each.name): each for each in found}


def _constraints() -> dict[str, str]:
    lines = (_CHECKOUT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def _imported() -> set[str]:
    modules = set()
    for path in (
        path for package in ("cdc_tasks", "listener") for path in (_CHECKOUT / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                modules |= {each.name.partition(".")[0] for each in node.names}
    by_pytest = {"pytest"}  # it loads `pytest_plugin`, so it is there
    return modules - set(sys.stdlib_module_names) - {"cdc_tasks", "listener"} - by_pytest


def test_every_package_that_is_imported_is_declared() -> None:
    distributions = metadata.packages_distributions()
    needed = {canonicalize_name(distributions[module][0]) for module in _imported() - {"opentelemetry"}}
    assert needed <= _declared().keys()


def test_the_packages_of_an_extra_are_those_whose_absence_names_it() -> None:
    project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]
    distributions = metadata.packages_distributions()
    for extra, (_, modules) in EXTRAS.items():
        asked_for = {
            canonicalize_name(Requirement(each).name) for each in project["optional-dependencies"][extra]
        }
        assert {_distribution(module, distributions) for module in modules} == asked_for


def _distribution(module: str, distributions: Mapping[str, list[str]]) -> str:
    """Return the name of what brings a module; several bring parts of a package with a dot in its name."""
    path = module.replace(".", "/")
    found = [
        name
        for name in distributions[module.partition(".")[0]]
        if any(each.as_posix().startswith(f"{path}/") for each in metadata.files(name) or ())
    ]
    return canonicalize_name(found[0] if "." in module else distributions[module][0])


def test_the_constraints_fit_what_is_declared_and_leave_nothing_open() -> None:
    constraints = _constraints()
    for name, requirement in _declared().items():
        assert requirement.specifier.contains(constraints[name]), requirement
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in constraints, f"{name} needs {needed}"


def test_images_are_pinned_to_a_version() -> None:
    services = yaml.safe_load((_CHECKOUT / "docker-compose.yml").read_text())["services"]
    images = {each["image"] for each in services.values() if "image" in each}
    files = [_CHECKOUT / "Dockerfile", _CHECKOUT / "deploy" / "image" / "Dockerfile"]
    bases = [base for file in files for base in re.findall(r"^FROM (\S+)", file.read_text(), re.MULTILINE)]
    assert images
    assert [image for image in {*images, *bases} if not _FULL_VERSION.search(image)] == []
    assert "--constraint constraints.txt" in (_CHECKOUT / "Dockerfile").read_text()
