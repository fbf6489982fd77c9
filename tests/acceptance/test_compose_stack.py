"""The containers of docker-compose.yml without Docker: their commands, variables and health checks."""

from __future__ import annotations

import base64
import os
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis

from harness.embedded_servers import PostgresServer
from harness.given_mysql import MySQLServer
from harness.machine_servers import RedisServer
from harness.server_process import ServerProcess
from harness.waiting import wait_until
from tests.support.compose import CHECKOUT, initialized_mysql, load_compose, variables_of_compose

_SECRETS = {name: f"the-{name.lower()}" for name in variables_of_compose()} | {
    "CDC_SECRET_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
    "TICKET_BASE_URL": "",
}
_SERVICES: dict[str, Any] = load_compose(_SECRETS)


class Container(ServerProcess):
    """One of our services: its command, with nothing from around it but its own environment."""

    stop_timeout = 40

    def __init__(self, name: str, addresses: Mapping[str, str]) -> None:
        """`addresses` says what stands for what is written in the file."""
        self.name = name
        super().__init__()
        self._service = _SERVICES[name]
        self._addresses = {
            **addresses,
            ":5555": f":{self.port}",
            ":5556": f":{self.port}",
            "0.0.0.0:9187": f"127.0.0.1:{self.port}",  # here the listener has no network of its own
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program, *arguments = self._service["command"]
        return [str(Path(sys.executable).with_name(program)), *arguments]

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {name: self._here(value) for name, value in self._service["environment"].items()}
        # Docker sets HOSTNAME; FLOWER_PORT is what the mapping of ports would do.
        return {"PATH": path, "HOSTNAME": socket.gethostname(), "FLOWER_PORT": str(self.port), **given}

    def run(self, program: str, *arguments: str) -> None:
        """Run a command beside it, as `docker compose exec` does."""
        command = [str(Path(sys.executable).with_name(program)), *arguments]
        result = subprocess.run(
            command, env=self._environment(), cwd=self.home, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def _is_ready(self) -> bool:
        return is_healthy(self._service, self._environment(), self._here)

    def _here(self, text: str) -> str:
        for written, here in self._addresses.items():
            text = text.replace(written, here)
        return text


def is_healthy(service: Mapping[str, Any], environment: Mapping[str, str], here: Any = str) -> bool:
    """Run the service's health check."""
    kind, *command = map(here, service["healthcheck"]["test"])
    if kind == "CMD-SHELL":
        command = ["sh", "-c", *command]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    arguments = _SERVICES["postgres"]["command"][1:]
    settings = dict(setting.split("=") for setting in arguments if setting != "-c")
    with PostgresServer(password=_SECRETS["POSTGRES_PASSWORD"], settings=settings) as server:
        _execute(server.url, "CREATE DATABASE helpdesk")
        environment = {
            **_SERVICES["postgres"]["environment"],
            "PATH": f"{server.binaries}:{os.environ['PATH']}",
            "POSTGRES_USER": "postgres",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGPASSWORD": _SECRETS["POSTGRES_PASSWORD"],
        }
        schema = [
            "psql",
            "-U",
            "postgres",
            "-d",
            "helpdesk",
            "-f",
            "cdc_tasks/helpdesk/schema/postgresql.sql",
        ]
        for command in (schema, ["docker/postgres/roles.sh"]):
            subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True)
        assert is_healthy(_SERVICES["postgres"], environment)
        yield server


@pytest.fixture(scope="module")
def mysql() -> Iterator[MySQLServer]:
    service = _SERVICES["mysql"]
    with initialized_mysql(service["environment"], service["command"]) as (server, environment):
        assert is_healthy(service, environment)
        assert not is_healthy(service, {**environment, "WORKER_PASSWORD": "another"})
        yield server


@pytest.fixture(scope="module")
def broker() -> Iterator[RedisServer]:
    service = _SERVICES["redis"]
    line = service["command"][-1].replace("$REDIS_PASSWORD", service["environment"]["REDIS_PASSWORD"])
    _exec, _program, *arguments = shlex.split(line)
    with RedisServer(password=_SECRETS["REDIS_PASSWORD"], arguments=arguments) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        environment = {**os.environ, **service["environment"]}
        here = lambda text: text.replace("redis-cli", f"redis-cli -p {server.port}")  # noqa: E731
        assert is_healthy(service, environment, here)
        yield server


def test_the_containers_become_healthy_in_their_order_and_do_the_whole_job(
    postgres: PostgresServer, broker: RedisServer
) -> None:
    addresses = {
        "@postgres:5432": f"@127.0.0.1:{postgres.port}",
        "@redis:6379": f"@127.0.0.1:{broker.port}",
    }
    with ExitStack() as stack:
        _worker, listener, flower, console = (
            stack.enter_context(Container(name, addresses))
            for name in ("worker", "listener", "flower", "console")
        )
        listener.run("cdc-listener", "check")
        superuser = postgres.url_of("helpdesk")
        _execute(superuser, "INSERT INTO roles (name) VALUES ('Auditor')")
        cache = stack.enter_context(redis.Redis.from_url(broker.url_of(1)))
        wait_until(lambda: b"Auditor" in (cache.get("master:roles") or b""), timeout=20, what="the cache")
        assert _status_of(flower.url) == 401
        with urllib.request.urlopen(console.url) as page:
            assert page.url == f"{console.url}/login"
        assert _status_of(flower.url, f"admin:{_SECRETS['FLOWER_PASSWORD']}") == 200


def test_those_of_the_profile_mysql_do_it_too(mysql: MySQLServer, broker: RedisServer) -> None:
    addresses = {"@mysql:3306": f"@127.0.0.1:{mysql.port}", "@redis:6379": f"@127.0.0.1:{broker.port}"}
    with ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(broker.url))
        client.flushall()  # of the other profile's: one database at a time
        _worker, listener = (
            stack.enter_context(Container(name, addresses)) for name in ("mysql-worker", "mysql-listener")
        )
        listener.run("cdc-listener", "check")
        connection = stack.enter_context(closing(mysql.connect("helpdesk")))
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO roles (name) VALUES ('Auditor')")
        cache = stack.enter_context(redis.Redis.from_url(broker.url_of(1)))
        wait_until(lambda: b"Auditor" in (cache.get("master:roles") or b""), timeout=20, what="the cache")


def _status_of(url: str, login: str = "") -> int:
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
