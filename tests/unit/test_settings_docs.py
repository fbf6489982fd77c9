"""The pages on settings and operating say what the code does, no more and no less."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdc_tasks.environment import TWINS
from cdc_tasks.variables import FILE, KNOWN, SECRETS
from listener.cli.commands import cli
from reference.settings import fields

_CHECKOUT = Path(__file__).resolve().parents[2]
_SETTINGS_PAGE = (_CHECKOUT / "docs" / "settings.md").read_text()
_ROW = re.compile(r"^\| `(?P<variable>[A-Z_]+)` \| (?P<default>.*?) \|", re.MULTILINE)
_READ_DIRECTLY = re.compile(r"""environ(?:\.get\(|\[)\s*["'](\w+)""")
_COMMAND = re.compile(r"(?:^\$ |`)(?:python -m listener|cdc-listener)((?: [^`\n]*)?)(?:`|$)", re.MULTILINE)

# Flower reads these by itself; they are told because nobody should go without.
_OF_OTHERS = {"FLOWER_ADDRESS", "FLOWER_BASIC_AUTH", "FLOWER_MAX_TASKS", "FLOWER_TASKS_COLUMNS"}


def _read_directly() -> set[str]:
    files = [
        *_CHECKOUT.glob("*config.py"),
        *(_CHECKOUT / "cdc_tasks").rglob("*.py"),
        *(_CHECKOUT / "listener").rglob("*.py"),
    ]
    return {name for file in files for name in _READ_DIRECTLY.findall(file.read_text())}


def test_every_variable_in_the_code_is_documented_and_the_other_way_round() -> None:
    documented = {row["variable"] for row in _ROW.finditer(_SETTINGS_PAGE)}
    files = {f"{name}{FILE}" for name in SECRETS}
    assert documented == fields().keys() | _read_directly() | _OF_OTHERS | set(TWINS.values()) | files


def test_every_variable_of_ours_is_known_as_such() -> None:
    documented = {row["variable"] for row in _ROW.finditer(_SETTINGS_PAGE)}
    assert {name for name in documented if name.startswith("CDC_")} == KNOWN


@pytest.mark.parametrize("page", ["README.md", "docs/operating.md", "docs/settings.md"])
def test_every_command_and_option_on_the_page_exists(page: str) -> None:
    for arguments in _COMMAND.findall((_CHECKOUT / page).read_text()):
        if "--install-completion" in arguments:
            continue  # it would write into the home of who runs the tests
        asked = CliRunner().invoke(cli, [*shlex.split(arguments), "--help"])
        assert asked.exit_code == 0, asked.output


def test_every_field_of_the_status_is_explained() -> None:
    page = (_CHECKOUT / "docs" / "operating.md").read_text()
    told = set(re.findall(r"`(\w+)`", page))
    from listener.cli.output import describe_status
    from listener.core.source_status import Reader, SourceStatus
    from listener.daemon.status import SavedPosition, Status

    source = SourceStatus(
        reader=Reader.NONE,
        detail="",
        current="",
        acknowledged=None,
        lag_bytes=0,
        retained_bytes=0,
        safe_bytes=None,
    )
    status = Status(name="", source=source, saved=SavedPosition(None, None, 0), lag_alarm=1)
    assert describe_status(status).keys() - told <= {"name", "detail", "end_of_log"}
