"""What is said of the examples is true of their files."""

from __future__ import annotations

import ast
import os
import re
import sys
from contextlib import ExitStack
from importlib import import_module, metadata
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from examples import servers
from examples.programs import procfile
from examples.stage import EXAMPLES, started

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_EXAMPLES: Final = _CHECKOUT / "examples"
_CODE: Final = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS: Final = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)")

each_example = pytest.mark.parametrize("name", EXAMPLES)


def _source(*names: str) -> str:
    files = (file for name in names for file in sorted((_EXAMPLES / name).rglob("*.py")))
    return "\n".join(file.read_text() for file in files)


def _imported(directory: Path) -> set[str]:
    own = {path.name for path in directory.iterdir()}
    modules = set()
    for file in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                modules |= {each.name.partition(".")[0] for each in node.names}
    return modules - own - set(sys.stdlib_module_names)


def test_each_directory_is_an_example_that_can_be_started() -> None:
    assert sorted(EXAMPLES) == sorted(path.parent.name for path in _EXAMPLES.glob("*/requirements.txt"))
    assert all(os.access(_EXAMPLES / program, os.X_OK) for program in ("install", "run"))


@each_example
def test_its_requirements_name_what_it_imports_and_fit_what_is_installed(name: str) -> None:
    lines = (_EXAMPLES / name / "requirements.txt").read_text().split()
    required = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    distributions = metadata.packages_distributions()
    imported = {canonicalize_name(distributions[module][0]) for module in _imported(_EXAMPLES / name)}
    assert imported | {"cdc-tasks"} <= required.keys() | {"pydantic"}  # FastAPI's own interface
    assert [str(each) for each in required.values() if not _is_installed(each)] == []


def _is_installed(required: Requirement) -> bool:
    """Return whether pip would be content with what is here, also with what the extras ask for."""
    inner = map(Requirement, metadata.requires(required.name) or ())
    asked = [
        each
        for each in inner
        if each.marker and any(each.marker.evaluate({"extra": extra}) for extra in required.extras)
    ]
    known = {
        canonicalize_name(name) for name in metadata.metadata(required.name).get_all("Provides-Extra") or ()
    }
    return (
        required.specifier.contains(metadata.version(required.name))
        and {canonicalize_name(each) for each in required.extras} <= known
        and all(map(_is_installed, asked))
    )


@each_example
def test_its_readme_has_two_commands_and_code_of_the_example(name: str) -> None:
    readme = (_EXAMPLES / name / "README.md").read_text()
    (commands,) = _COMMANDS.findall(readme)
    assert commands == f"$ examples/install {name}\n$ examples/run {name}\n"
    (code,) = _CODE.findall(readme)
    assert code in _source(name)


def test_the_page_of_the_docs_has_code_of_each_example() -> None:
    page = (_CHECKOUT / "docs" / "examples.md").read_text()
    source = _source(*EXAMPLES)
    blocks = _CODE.findall(page)
    assert [block for block in blocks if block not in source] == []
    assert all(any(block in _source(name) for block in blocks) for name in EXAMPLES)


@pytest.mark.parametrize("page", sorted(_EXAMPLES.rglob("README.md")), ids=lambda page: page.parent.name)
def test_what_a_page_links_to_exists(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        assert (page.parent / link).exists(), link


@each_example
def test_its_hints_name_variables_and_programs_that_it_has(name: str) -> None:
    story = import_module(f"examples.stories.{name.replace('-', '_')}")
    variables = {"DATABASE_URL", "CELERY_BROKER_URL", story.OTHER_DATABASE, *story.VARIABLES}
    for hint in story.TRY:
        for variable, program in re.findall(r"\$(\w+)|\{(\w+)\}", hint):
            assert variable in variables or program in procfile(_EXAMPLES / name), hint


def test_a_second_database_that_is_not_named_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/none")
    monkeypatch.delenv("AUDIT_DATABASE_URL", raising=False)
    story = import_module("examples.stories.audit_log")
    with (
        pytest.raises(servers.ServerChoiceError, match="AUDIT_DATABASE_URL is not set"),
        started("audit-log", story, None),
    ):
        pass


def test_two_databases_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/none")
    with pytest.raises(servers.ServerChoiceError, match="contradict"), ExitStack() as stack:
        servers.start_servers(stack, print, "mariadb", other_database=None)
