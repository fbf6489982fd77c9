"""The variables that pages name, and the values that they give to them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from cdc_tasks.settings import TracingSettings, WorkerSettings
from cdc_tasks.variables import KNOWN, TWINS
from listener.console.settings import ConsoleSettings
from listener.daemon.settings import ListenerSettings
from tests.support.snippets.errors import WrongSnippetError

if TYPE_CHECKING:
    from cdc_tasks.settings import Settings

__all__ = ["check_names", "check_value"]

_CLASSES: Final[tuple[type[Settings], ...]] = (
    ListenerSettings,
    WorkerSettings,
    ConsoleSettings,
    TracingSettings,
)
_NAME: Final = re.compile(r"(?<![\w*])CDC_[A-Z_]*[A-Z](?![\w*])")
_FIELD_OF: Final = {twin: name for name, twin in TWINS.items()}
_OF_DJANGO: Final = {"CDC_CONTEXT"}  # in a project's settings only
_OF_TESTS: Final = "CDC_TEST_"


def check_names(text: str) -> None:
    """Raise WrongSnippetError for a variable of ours that does not exist."""
    named = {each for each in _NAME.findall(text) if not each.startswith(_OF_TESTS)}
    if unknown := named - KNOWN - _OF_DJANGO:
        raise WrongSnippetError(f"there is no variable {', '.join(sorted(unknown))}")


def check_value(name: str, value: str) -> None:
    """Raise WrongSnippetError if the settings refuse this value; placeholders are not checked."""
    field = _FIELD_OF.get(name, name).lower()
    if any(each in value for each in ("…", "$", "VALUE")):
        return
    for kind in _CLASSES:
        if field in kind.model_fields:
            _check_field(kind, field, value)


def _check_field(kind: type[Settings], field: str, value: str) -> None:
    given = {"database_url": "postgresql://localhost/shop"} if "database_url" in kind.model_fields else {}
    try:
        kind(**{**given, field: value})
    except ValidationError as error:
        wrong = [each["msg"] for each in error.errors() if each["loc"][:1] in {(field,), ()}]
        if wrong:
            raise WrongSnippetError(f"{field.upper()}={value}: {'; '.join(wrong)}") from None
