"""The names of variables: unknown ones, and the one to correct if another takes precedence.

A secret may be in a file: `DATABASE_URL_FILE` names it, as in the official container images.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import Final

__all__ = ["FILE", "KNOWN", "SECRETS", "TWINS", "as_set", "is_set", "set_by", "unknown_variables", "variable"]

# The variable that other programs read, and the one that takes precedence.
TWINS: Final = {
    "CACHE_URL": "CDC_CACHE_URL",
    "CELERY_BROKER_URL": "CDC_BROKER_URL",
    "CELERY_CONFIG_MODULE": "CDC_CELERY_CONFIG_MODULE",
    "DATABASE_URL": "CDC_DATABASE_URL",
}
FILE: Final = "_FILE"
# Those whose value may be in a file; the same name with _FILE at the end names the file.
SECRETS: Final = frozenset(
    {
        "CACHE_URL",
        "CDC_BROKER_URL",
        "CDC_CACHE_URL",
        "CDC_CONSOLE_PASSWORD",
        "CDC_CONSOLE_READ_PASSWORD",
        "CDC_DATABASE_URL",
        "CDC_SECRET_KEY",
        "CELERY_BROKER_URL",
        "DATABASE_URL",
        "FLOWER_BASIC_AUTH",
    }
)
# With CDC_APP these settings come from the app. CACHE_URL is not read then: for other programs it is a cache.
_WITH_APP: Final = {
    "CACHE_URL": "CDC_CACHE_URL",
    "CELERY_BROKER_URL": "broker_url of the app {}",
    "celeryconfig.py": "the settings of the app {}",
}
_NAME: Final = re.compile(
    r"\$?(?<![A-Z_])(CACHE_URL|CELERY_BROKER_URL|CELERY_CONFIG_MODULE|DATABASE_URL|celeryconfig\.py)(?![A-Z_])"
)

# All variables of docs/settings.md. The listener and the workers may share an environment, so both know all of them.
KNOWN: Final = frozenset(
    {
        *(f"{name}{FILE}" for name in SECRETS if name.startswith("CDC_")),
        "CDC_APP",
        "CDC_BATCH_SIZE",
        "CDC_BATCH_WAIT",
        "CDC_BROKER_URL",
        "CDC_CACHE_URL",
        "CDC_CELERY_CONFIG_MODULE",
        "CDC_COALESCE_INTERVAL",
        "CDC_COLUMN_LISTS",
        "CDC_CONSOLE_ADDRESS",
        "CDC_CONSOLE_HOSTS",
        "CDC_CONSOLE_PASSWORD",
        "CDC_CONSOLE_READ_PASSWORD",
        "CDC_CONSOLE_URL",
        "CDC_CONSOLE_USER_HEADER",
        "CDC_CONTEXT_SHOWN",
        "CDC_DATABASE_PASSWORD_COMMAND",
        "CDC_DATABASE_PASSWORD_FUNCTION",
        "CDC_DATABASE",
        "CDC_DATABASE_URL",
        "CDC_DURABILITY",
        "CDC_FLOWER_HOSTS",
        "CDC_FLOWER_URL",
        "CDC_KEY_PARTITIONS",
        "CDC_JOURNAL",
        "CDC_JOURNAL_AGE",
        "CDC_JOURNAL_SIZE",
        "CDC_LAG_ALARM",
        "CDC_MESSAGES_KEPT",
        "CDC_METRICS_ADDRESS",
        "CDC_QUEUE_ALARM",
        "CDC_LOG_FORMAT",
        "CDC_LOG_LEVEL",
        "CDC_LOST_ANSWER",
        "CDC_MAX_PARKED",
        "CDC_MAX_QUEUE",
        "CDC_MAX_SET_ASIDE",
        "CDC_NAME",
        "CDC_OTEL",
        "CDC_PLUGIN",
        "CDC_PUBLICATION",
        "CDC_QUEUE_PREFIX",
        "CDC_RATES",
        "CDC_RECENT_SIZE",
        "CDC_REPLAY_WINDOW",
        "CDC_ROUTES",
        "CDC_SECRET_KEY",
        "CDC_SERVER_ID",
        "CDC_SLOT",
        "CDC_SLOT_FAILOVER",
        "CDC_TASK_MODULES",
        "CDC_TEST_DATABASE_URL",
    }
)
_OF_TESTS: Final = "CDC_TEST_"


def variable(name: str) -> str:
    """Return the variable that this value comes from: the twin if it is set, else the name itself."""
    twin = TWINS.get(name)
    return twin if twin is not None and is_set(twin) else name


def is_set(name: str) -> bool:
    """Return whether the variable has a value, itself or in a file."""
    return bool(os.environ.get(name) or (name in SECRETS and os.environ.get(f"{name}{FILE}")))


def set_by(name: str) -> str:
    """Return the variable to correct: the twin if it is set, with _FILE at the end if the value is in a file."""
    chosen = variable(name)
    return f"{chosen}{FILE}" if is_set(chosen) and not os.environ.get(chosen) else chosen


def as_set(text: str) -> str:
    """Return the text of an error or a hint, with the names of the settings that this process actually uses."""
    return _NAME.sub(_as_set, text)


def _as_set(found: re.Match[str]) -> str:
    name, app = found[1], _other_app()
    if found[0].startswith("$"):  # in a command for a shell
        chosen = set_by(name)
        return f"$(cat ${chosen})" if chosen.endswith(FILE) else f"${chosen}"
    return _WITH_APP[name].format(app) if app and name in _WITH_APP else set_by(name)


def _other_app() -> str | None:
    """Return CDC_APP, unless it names our own app, whose settings come from the variables."""
    app = os.environ.get("CDC_APP")
    return None if app is None or re.split(r"[.:]", app)[0] == "cdc_tasks" else app


def unknown_variables() -> dict[str, str]:
    """Return the unknown variables CDC_…, sorted by name, each with a hint."""
    unknown = (
        name
        for name in sorted(os.environ)
        if name.startswith("CDC_") and name not in KNOWN and not name.startswith(_OF_TESTS)
    )
    return {name: _hint(name) for name in unknown}


def _hint(name: str) -> str:
    close = get_close_matches(name, KNOWN, n=1)
    return f"Did you mean {close[0]}?" if close else "All variables: docs/settings.md"
