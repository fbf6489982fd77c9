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
