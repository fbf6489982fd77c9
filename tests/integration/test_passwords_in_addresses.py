"""A password in every odd place of an address, and every command: it is refused or used, and never shown."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

import cdc_tasks.cli.commands as tasks_command_line
import listener.cli.commands as listener_command_line
from cdc_tasks import cache, db
from cdc_tasks.addresses import check_address
from cdc_tasks.settings import BrokerSettings, SettingsError, load, worker_settings
from harness.waiting import at_most
from tests.support.warm_python import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_SECRETS = ("Pa55", "wOrd", "Tw0")  # parts of one: none of them may be seen

# Where HOST is a port at which nobody listens, so that drivers have something to say about it.
FORMS = [
    "{scheme}://anna:Pa55/wOrd@HOST/1",
    "{scheme}://anna:Pa55#wOrd@HOST/1",
    "{scheme}://anna:Pa55?wOrd@HOST/1",
    "{scheme}://anna:Pa55@wOrd@HOST/1",
    "{scheme}://anna:Pa55:wOrd@HOST/1",
    "{scheme}://anna:Pa55[wOrd@HOST/1",
    "{scheme}://anna:Pa55]wOrd@HOST/1",
    "{scheme}://anna:Pa55%wOrd@HOST/1",
    "{scheme}://anna:Pa55 wOrd@HOST/1",
    "{scheme}://anna:Pa55\\wOrd@HOST/1",
    "{scheme}://anna:Pa55/@wOrd@HOST/1",
    "{scheme}://anna:#Pa55@wOrd@HOST/1",
    "{scheme}://:Pa55wOrd",
    "{scheme}://:Pa55wOrd@",
    "{scheme}:/anna:Pa55wOrd@HOST/1",
    "{scheme}:anna:Pa55wOrd@HOST/1",
    "{scheme}//anna:Pa55wOrd@HOST/1",
    "anna:Pa55wOrd@HOST/1",
    "Pa55wOrd",
    "{scheme}://anna:Pa55wOrd@HOST:notaport/1",
    "{scheme}://anna:Pa55wOrd@127.0.0.1:99999/1",
    "{scheme}://anna:Pa55%2FwOrd@HOST/1",
    "{scheme}://anna:Pa55wOrd@HOST/1",
    "{scheme}://HOST/1?password=Pa55wOrd",
    "{scheme}://anna:Pa55wOrd@HOST/1;{scheme}://anna:Tw0@HOST/1",
]
VARIABLES = {"DATABASE_URL": "postgresql", "CELERY_BROKER_URL": "redis", "CACHE_URL": "redis"}
GOOD = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/name",
    "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
    "CACHE_URL": "redis://127.0.0.1:1/1",
}
COMMANDS = [
    (listener_command_line.cli, ["check"]),
    (listener_command_line.cli, ["status"]),
    (listener_command_line.cli, ["parked", "list"]),
    (tasks_command_line.cli, ["accounts"]),
    (tasks_command_line.cli, ["dead-letters", "list"]),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    for cached in (worker_settings, db.engine, cache.client):
        cached.cache_clear()
    yield
    for cached in (worker_settings, db.engine, cache.client):
        cached.cache_clear()


def _address(form: str, scheme: str) -> str:
    return form.format(scheme=scheme).replace("HOST", "127.0.0.1:1")


def _assert_silent(text: str) -> None:
    assert [each for each in _SECRETS if each in text] == [], text


@pytest.mark.parametrize("variable", [*VARIABLES, "mysql"])
@pytest.mark.parametrize("form", FORMS)
def test_no_command_shows_it(form: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = VARIABLES.get(variable, "mysql")
    variable = "DATABASE_URL" if variable == "mysql" else variable
    for name, value in {**GOOD, variable: _address(form, scheme)}.items():
        monkeypatch.setenv(name, value)
    for program, arguments in COMMANDS:
        for cached in (worker_settings, db.engine, cache.client):
            cached.cache_clear()
        result = CliRunner().invoke(program, arguments)
        _assert_silent(result.output)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            assert type(result.exception).__module__.startswith(("cdc_tasks", "listener")), result.exception
            _assert_silent(str(result.exception))
            _assert_silent("".join(traceback.format_exception_only(result.exception)))


@pytest.mark.parametrize(
    "arguments", [["worker", "-c1"], ["report"], ["flower"], ["inspect", "ping"]], ids=str
)
@pytest.mark.parametrize("form", [FORMS[0], FORMS[12], FORMS[14]])
def test_no_command_of_celery_shows_it(arguments: list[str], form: str) -> None:
    environment = {**os.environ, **GOOD, "CELERY_BROKER_URL": _address(form, "redis")}
    done = WARM.run(
        [sys.executable, "-m", "celery", "-A", "cdc_tasks", *arguments],
        cwd=_CHECKOUT,
        env=environment,
        timeout=at_most(60),
    )
    assert done.returncode == 1
    assert "CELERY_BROKER_URL=***" in done.stderr
    assert "Traceback" not in done.stderr
    _assert_silent(done.stdout + done.stderr)


@pytest.mark.parametrize("parameters", ["socket_timeout=7", "password=Pa55wOrd", "virtual_host=3", "x=1&y=2"])
def test_parameters_that_celery_does_not_take_are_named_and_their_values_are_not(
    parameters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:1/0?{parameters}")
    with pytest.raises(SettingsError, match="broker_transport_options") as caught:
        load(BrokerSettings)
    assert parameters.partition("=")[0] in str(caught.value)
    _assert_silent(str(caught.value))


@pytest.mark.parametrize(
    "address",
    [
        "redis://localhost:6379/0",
        "redis://:p%40ss%2Fword@cache_1:6379/0",
        "rediss://[::1]:6380/0?ssl_cert_reqs=required",
        "sentinel://one:26379;sentinel://two:26379",
        "amqp://guest:guest@localhost//",
        "amqps://user:pa:ss@host:5671/vhost",
        "postgresql://user@/name?host=db1,db2&port=5432,5432&target_session_attrs=read-write",
        "postgresql+psycopg2://user:x@h1:5432,h2:5432/name",
        "mysql://root@localhost/shop?unix_socket=/run/mysqld/mysqld.sock",
        "unix:///run/redis.sock?virtual_host=1",
        "redis+socket:///run/redis.sock",
        "memory://",
        "sqs://",
    ],
)
def test_what_people_write_is_taken(address: str) -> None:
    check_address(address)
