"""docker-compose.yml and the Dockerfile, read as Docker would, for machines that have no Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.mysql_servers import MySQLServer

__all__ = ["CHECKOUT", "dockerfile_stages", "initialized_mysql", "load_compose", "variables_of_compose"]

CHECKOUT = Path(__file__).resolve().parents[1]
_COMPOSE = CHECKOUT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\})")


def variables_of_compose() -> set[str]:
    """Return the names of the variables that the file takes from `.env`."""
    return {match["name"] for match in _VARIABLE.finditer(_COMPOSE.read_text()) if match["name"]}


def load_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's services, with `${NAME}` and `$$` replaced as Compose does."""
    services: dict[str, Any] = _replaced(yaml.safe_load(_COMPOSE.read_text())["services"], variables)
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
    """Run a MySQL whose data the scripts of the compose file have made, as the image lets them.

    Beside it come the variables with which the container's commands find it, its client among them.
    """
    with MySQLServer(arguments=arguments) as server:
        server.create_database(environment["MYSQL_DATABASE"])
        there = {
            **environment,
            "PATH": f"{_client_directory(server)}:{os.environ['PATH']}",
            "MYSQL_ROOT_PASSWORD": "",  # the image would have set it before
        }
        schema = (CHECKOUT / "cdc_tasks/schema/mysql.sql").read_bytes()
        client = ["mysql", "--user=root", environment["MYSQL_DATABASE"]]
        for command, text in ((client, schema), (["docker/mysql/roles.sh"], b"")):
            done = subprocess.run(
                command, cwd=CHECKOUT, env=there, input=text, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        yield server, there


def _client_directory(server: MySQLServer) -> Path:
    """Return a directory with a `mysql` that finds the server, as in its container."""
    client = shutil.which("mysql") or shutil.which("mariadb")
    assert client, "this test needs a client: install mariadb-client, or MySQL's"
    directory = server.home / "bin"
    directory.mkdir()
    script = directory / "mysql"
    script.write_text(f'#!/bin/sh\nexec {client} --no-defaults --host=127.0.0.1 --port={server.port} "$@"\n')
    script.chmod(0o755)
    return directory
