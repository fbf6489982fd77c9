"""Packages that only some parts need: `pip install "cdc-tasks[mysql]"` and the other extras of pyproject.toml.

They are imported where they are used. If one is missing, the error names the extra to install.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from traceback import walk_tb
from typing import TYPE_CHECKING, Final

from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXTRAS", "MissingExtraError", "check_extra", "missing_extra", "needs_extras"]

# extra: (what needs it, the modules of its packages)
EXTRAS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "mysql": (
        "Reading from MySQL or MariaDB",
        ("pymysql", "pymysqlreplication", "zstandard", "cryptography"),
    ),
    "console": ("The console", ("starlette", "uvicorn", "jinja2", "itsdangerous", "multipart")),
    "journal": ("The journal", ("zstandard",)),
    "helpdesk": (
        "The help desk with its messages and its cache",
        ("sqlalchemy", "slack_sdk", "pymsteams", "cryptography", "requests", "urllib3"),
    ),
    "otel": (
        "Tracing with OpenTelemetry",
        (
            "opentelemetry.trace",
            "opentelemetry.sdk",
            "opentelemetry.exporter.otlp.proto.http",
            "opentelemetry.instrumentation.celery",
        ),
    ),
    "metrics": ("CDC_METRICS_ADDRESS", ("prometheus_client",)),
    "flower": ("Flower", ("flower", "tornado", "prometheus_client")),
}


class MissingExtraError(CDCError, ImportError):
    """A package of an extra is not installed."""


def missing_extra(module: str | None) -> MissingExtraError | None:
    """Return the error for a module that was not found; None if no extra has it."""
    top = _top(module or "")
    extras = [extra for extra, (_, modules) in EXTRAS.items() if top in {_top(each) for each in modules}]
    if not extras:
        return None
    needs = EXTRAS[extras[0]][0] if len(extras) == 1 else "This"
    return MissingExtraError(
        f"{needs} needs the package {top}, which is not installed.",
        hint=f'pip install "cdc-tasks[{",".join(extras)}]"',
    )


@contextmanager
def needs_extras(extra: str | None = None) -> Iterator[None]:
    """Raise MissingExtraError if an import in the block fails because an extra is not installed.

    `extra` names the extra that the block needs, because some packages are in several.
    """
    try:
        if extra:
            check_extra(extra)
        yield
    except ModuleNotFoundError as error:
        found = missing_extra(error.name) if _is_ours(error) else None
        if found:
            raise found from error
        raise


def _is_ours(error: ModuleNotFoundError) -> bool:
    """Return whether the failed import is in one of our modules, not in the application's."""
    importers = [
        str(frame.f_globals.get("__name__")).partition(".")[0]
        for frame, _ in walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith("<frozen")
    ]
    return bool(importers) and importers[-1] in {"cdc_tasks", "listener", "sqlalchemy"}


def check_extra(extra: str) -> None:
    """Raise MissingExtraError if a package of this extra is not installed."""
    needs, modules = EXTRAS[extra]
    missing = [module for module in modules if not _is_there(module)]
    if missing:
        raise MissingExtraError(
            f"{needs} needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}, "
            f"which {'are' if len(missing) > 1 else 'is'} not installed.",
            hint=f'pip install "cdc-tasks[{extra}]"',
        )


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing too
        return False
