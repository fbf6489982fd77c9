"""Environment variables that start with CDC_ and that nothing reads: most are misspelt."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import Final

__all__ = ["KNOWN", "unknown_variables"]

# All of docs/settings.md. The listener and the workers may share an environment, and each knows the other's.
KNOWN: Final = frozenset(
    {
        "CDC_APP",
        "CDC_BATCH_SIZE",
        "CDC_BATCH_WAIT",
        "CDC_BROKER_URL",
        "CDC_CACHE_URL",
        "CDC_CELERY_CONFIG_MODULE",
        "CDC_COALESCE_INTERVAL",
        "CDC_COLUMN_LISTS",
        "CDC_DATABASE_PASSWORD_COMMAND",
        "CDC_DATABASE_PASSWORD_FUNCTION",
        "CDC_DATABASE",
        "CDC_DATABASE_URL",
        "CDC_DURABILITY",
        "CDC_FLOWER_HOSTS",
        "CDC_KEY_PARTITIONS",
        "CDC_LAG_ALARM",
        "CDC_LOG_FORMAT",
        "CDC_LOG_LEVEL",
        "CDC_LOST_ANSWER",
        "CDC_MAX_QUEUE",
        "CDC_MAX_SET_ASIDE",
        "CDC_NAME",
        "CDC_PLUGIN",
        "CDC_PUBLICATION",
        "CDC_QUEUE_PREFIX",
        "CDC_RATES",
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


def unknown_variables() -> dict[str, str]:
    """Return the variables CDC_… that nothing reads, in the order of their names, each with a hint."""
    unknown = (
        name
        for name in sorted(os.environ)
        if name.startswith("CDC_") and name not in KNOWN and not name.startswith(_OF_TESTS)
    )
    return {name: _hint(name) for name in unknown}


def _hint(name: str) -> str:
    close = get_close_matches(name, KNOWN, n=1)
    return f"Did you mean {close[0]}?" if close else "All variables: docs/settings.md"
