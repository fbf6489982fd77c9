"""Secrets in files: `DATABASE_URL_FILE` names the file that has `DATABASE_URL`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from cdc_tasks.cache import make_client
from cdc_tasks.environment import SettingsError, value_of
from cdc_tasks.errors import CDCError
from cdc_tasks.notify.sealed_secrets import new_key
from cdc_tasks.settings import WorkerSettings, load
from cdc_tasks.variables import SECRETS, TWINS, unknown_variables
from listener.console.settings import ConsoleSettings
from listener.daemon.settings import ListenerSettings
from listener.daemon.settings import load as load_listener

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[[str, str | bytes], Path]

_URL = "postgresql://listener:hunter2@db/shop"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a secret's file, and name it in the environment, in which nothing else is set."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)

    def written(name: str, content: str | bytes) -> Path:
        path = tmp_path / name.lower()
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        monkeypatch.setenv(f"{name}_FILE", str(path))
        return path

    return written


def test_each_secret_setting_may_be_in_a_file() -> None:
    fields = {
        name.upper(): field
        for kind in (WorkerSettings, ListenerSettings, ConsoleSettings)
        for name, field in kind.model_fields.items()
    }
    secret = {name for name, field in fields.items() if "SecretStr" in str(field.annotation)}
    twins = {TWINS[name] for name in secret & TWINS.keys()}
    assert secret | twins | {"FLOWER_BASIC_AUTH"} == SECRETS


def test_settings_come_from_files_without_the_line_break_at_the_end(write: Write) -> None:
    key = new_key()
    write("DATABASE_URL", f"{_URL}\n")
    write("CELERY_BROKER_URL", "amqp://broker//\r\n")
    write("CDC_SECRET_KEY", key)
    write("CDC_CONSOLE_PASSWORD", "with blanks \n\n")
    settings = load(WorkerSettings)
    assert settings.database_url == SecretStr(_URL)
    assert settings.celery_broker_url == SecretStr("amqp://broker//")
    assert settings.cdc_secret_key == SecretStr(key)
    assert load(ConsoleSettings).cdc_console_password == SecretStr("with blanks ")
    assert unknown_variables() == {}


def test_a_twin_in_a_file_goes_first(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///somebody-elses")
    monkeypatch.setenv("CACHE_URL", "redis://somebody-elses/0")
    monkeypatch.setenv("CDC_APP", "shop")
    write("CDC_DATABASE_URL", _URL)
    write("CDC_CACHE_URL", "redis://ours/1")
    settings = load_listener(ListenerSettings)
    assert settings.database_url == SecretStr(_URL)
    assert settings.cache_url == SecretStr("redis://ours/1")
    assert value_of("CACHE_URL") == "redis://ours/1"


def test_all_that_is_wrong_with_files_is_told_at_once_beside_other_mistakes(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("DATABASE_URL", "\n")
    write("CACHE_URL", b"redis://\xff\n")
    write("CDC_SECRET_KEY", "hunter2")
    write("CELERY_BROKER_URL", "redis://a\0b").unlink()
    monkeypatch.setenv("CDC_LOST_ANSWER", "panic")
    with pytest.raises(SettingsError) as caught:
        load(WorkerSettings)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 settings cannot be used:"
    for name, problem in {
        "DATABASE_URL": "is empty. Write only the value into it.",
        "CACHE_URL": "is not UTF-8 text.",
        "CELERY_BROKER_URL": f"cannot be read: No such file or directory. It has to be a file that user {os.geteuid()}",
    }.items():
        path = os.environ[f"{name}_FILE"]
        assert any(line.startswith(f"  - {name}_FILE={path} {problem}") for line in lines), name
    assert any(line.startswith("  - CDC_SECRET_KEY_FILE=***: must be 32 bytes") for line in lines)
    assert any(line.startswith("  - CDC_LOST_ANSWER='panic'") for line in lines)
    assert "hunter2" not in str(caught.value)


def test_a_variable_and_its_file_cannot_both_be_set(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("CACHE_URL", "redis://one/0")
    monkeypatch.setenv("CACHE_URL", "redis://another/0")
    with pytest.raises(SettingsError, match="CACHE_URL and CACHE_URL_FILE are both set") as caught:
        value_of("CACHE_URL")
    assert caught.value.hint == "Unset one of them: unset CACHE_URL"


def test_errors_and_hints_name_the_file(write: Write) -> None:
    write("DATABASE_URL", _URL)
    write("CACHE_URL", "redis://user@host/0?unknown=1@2")
    error = CDCError("The database of DATABASE_URL is away.", hint="psql $DATABASE_URL")
    assert error.message == "The database of DATABASE_URL_FILE is away."
    assert error.hint == "psql $(cat $DATABASE_URL_FILE)"
    with pytest.raises(SettingsError, match=r"^CACHE_URL_FILE cannot be used"):
        make_client(retry=None)
