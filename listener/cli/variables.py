"""The variables and their descriptions, for `--help`.

They are read from the source of the settings: to load pydantic's models takes as long as all the rest of `--help`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["described_variables"]

# The classes with the fields of ListenerSettings; a later class takes precedence.
_CLASSES: Final = (
    ("cdc_tasks.settings", "LogSettings"),
    ("listener.daemon.settings", "RouteSettings"),
    ("cdc_tasks.settings", "BrokerSettings"),
    ("cdc_tasks.settings", "RedisSettings"),
    ("cdc_tasks.settings", "ConnectionSettings"),
    ("listener.daemon.settings", "ListenerSettings"),
)


def described_variables() -> dict[str, str]:
    """Return the description of each variable of the listener."""
    classes = {module: _classes(module) for module in dict.fromkeys(module for module, _ in _CLASSES)}
    return {
        name.upper(): description
        for module, class_ in _CLASSES
        for name, description in _described_fields(classes[module][class_])
    }


def _classes(module: str) -> dict[str, ast.ClassDef]:
    spec = find_spec(module)  # imports the packages around it, which load nothing
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return {each.name: each for each in ast.parse(source).body if isinstance(each, ast.ClassDef)}


def _described_fields(class_: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield each field with its own description: `name: type = Field(…, description="…")`."""
    for field in class_.body:
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call)):
            continue
        for keyword in field.value.keywords:
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                yield ast.unparse(field.target), str(keyword.value.value)
