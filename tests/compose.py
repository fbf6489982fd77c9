"""docker-compose.yml and the Dockerfile, read as Docker would, for machines that have no Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHECKOUT", "dockerfile_stages", "load_compose", "variables_of_compose"]

CHECKOUT = Path(__file__).resolve().parents[1]
_COMPOSE = CHECKOUT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\})")


def variables_of_compose() -> set[str]:
    """Return the names of the variables that the file takes from `.env`."""
    return {match["name"] for match in _VARIABLE.finditer(_COMPOSE.read_text()) if match["name"]}


def load_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's services, with `${NAME}` and `$$` replaced as Compose does."""

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        return variables.get(match["name"]) or match["default"] or ""

    services: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(value, _COMPOSE.read_text()))["services"]
    return services


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
