"""Reads docker-compose.yml and the Dockerfile as Docker would, for machines without Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cryptography.fernet import Fernet

from harness.given_mysql import MySQLServer
from harness.waiting import at_most

__all__ = [
    "CHECKOUT",
    "dockerfile_stages",
    "initialized_mysql",
    "load_compose",
    "try_commands",
    "variables_of_compose",
]

CHECKOUT = Path(__file__).resolve().parents[2]
_COMPOSE = CHECKOUT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\})")


def variables_of_compose() -> set[str]:
    """Return the names of the variables that the file takes from `.env`."""
    return {match["name"] for match in _VARIABLE.finditer(_COMPOSE.read_text()) if match["name"]}


def load_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's services, with `${NAME}` and `$$` replaced as Compose does.

    A variable without a value is replaced by the environment variable of the same name, if that is set.
    """
    services: dict[str, Any] = _replaced(yaml.safe_load(_COMPOSE.read_text())["services"], variables)
    for service in services.values():
        given = service.get("environment", {})
        passed_on = {
            name: variables[name] for name, value in given.items() if value is None and name in variables
        }
        service["environment"] = {
            name: value for name, value in given.items() if value is not None
        } | passed_on
    return services


def _replaced(node: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(node, str):
        return _VARIABLE.sub(lambda match: _value(match, variables), node)
    if isinstance(node, list):
        return [_replaced(item, variables) for item in node]
    if isinstance(node, dict):
        return {key: _replaced(value, variables) for key, value in node.items()}
    return node


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    return variables.get(match["name"]) or match["default"] or ""


def dockerfile_stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage, as pairs of instruction and argument."""
    text = (CHECKOUT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    stages: list[list[tuple[str, str]]] = []
    for line in lines:
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, argument.strip()))
    return stages


@contextmanager
def initialized_mysql(
    environment: Mapping[str, str], arguments: Sequence[str] = ()
) -> Iterator[tuple[MySQLServer, dict[str, str]]]:
    """Run a MySQL whose data the compose file's scripts have created, as in the image.

    Also yields the variables with which the container's commands find it, including its client.
    """
    with MySQLServer(arguments=arguments) as server:
        server.create_database(environment["MYSQL_DATABASE"])
        there = {
            **environment,
            "PATH": f"{_client_directory(server)}:{os.environ['PATH']}",
            "MYSQL_ROOT_PASSWORD": "",  # the image would have set it before
        }
        schema = (CHECKOUT / "cdc_tasks/helpdesk/schema/mysql.sql").read_bytes()
        client = ["mysql", "--user=root", environment["MYSQL_DATABASE"]]
        for command, text in ((client, schema), (["docker/mysql/roles.sh"], b"")):
            done = subprocess.run(
                command, cwd=CHECKOUT, env=there, input=text, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        yield server, there


def try_commands(worker_url: str, administer: Callable[[str], object]) -> None:
    """Run a person's commands in the workers' container, with the workers' role, and without its privileges."""
    administer("INSERT INTO users (name, email) VALUES ('Zoe', 'zoe@example.com')")
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    environment = {"DATABASE_URL": worker_url, "CDC_SECRET_KEY": old}
    connect = ("connect-account", "zoe@example.com", "slack")
    assert _tasks(environment, *connect).returncode == 0
    assert _tasks(environment, "preferences", "zoe@example.com", "--mute", "welcome").returncode == 0
    assert _tasks({**environment, "CDC_SECRET_KEY": f"{new},{old}"}, "rotate-key").returncode == 0
    revoke = "REVOKE INSERT, UPDATE ON connected_accounts FROM cdc_worker"
    administer(revoke)
    refused = _tasks(environment, *connect)
    assert refused.returncode == 1
    assert "As the owner of the tables, run:" in refused.stderr
    for line in refused.stderr.splitlines():
        if (statement := line.strip()).startswith("GRANT "):
            administer(statement)
    assert _tasks(environment, *connect).returncode == 0


def _tasks(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cdc_tasks", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        input="xoxb-token\n",
        capture_output=True,
        text=True,
        timeout=at_most(60),
        check=False,
    )


def _client_directory(server: MySQLServer) -> Path:
    """Return a directory with a `mysql` client that finds the server, as in its container."""
    client = shutil.which("mysql") or shutil.which("mariadb")
    assert client, "this test needs a client: install mariadb-client, or MySQL's"
    directory = server.home / "bin"
    directory.mkdir()
    script = directory / "mysql"
    script.write_text(f'#!/bin/sh\nexec {client} --no-defaults --host=127.0.0.1 --port={server.port} "$@"\n')
    script.chmod(0o755)
    return directory
