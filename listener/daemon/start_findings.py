"""What `check` finds in the settings: misspelt variables, no routes, the sample routes on another database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from cdc_tasks.routing.router import BinlogRouter
from cdc_tasks.variables import unknown_variables
from listener.core.findings import Finding, State
from listener.daemon.settings import RouteSettings

__all__ = ["NO_ROUTES", "find_in_routes", "find_in_variables"]

NO_ROUTES: Final = "Write a first file of routes for the existing tables: python -m listener init"
_SAMPLE: Final = str(RouteSettings.model_fields["cdc_routes"].default)


def find_in_variables() -> Iterator[Finding]:
    """Yield a warning for each unused variable CDC_…."""
    for variable, hint in unknown_variables().items():
        yield Finding(
            what=variable,
            state=State.WARNING,
            code="unknown_variable",
            found="is set, but not used",
            hint=hint,
        )


def find_in_routes(
    settings: RouteSettings, router: BinlogRouter, others: Sequence[Finding]
) -> Iterator[Finding]:
    """Yield a warning if there are no routes, or if they are the sample's and `others` report its tables missing."""
    if not (router.routes or router.accepted):
        found = f"CDC_ROUTES={settings.cdc_routes} has none: nothing fires a task"
        yield Finding(what="routes", state=State.WARNING, code="no_routes", found=found, hint=NO_ROUTES)
    elif _are_the_samples(settings) and any(each.code == "table_missing" for each in others):
        yield Finding(
            what="routes",
            state=State.WARNING,
            code="sample_routes",
            found="these are the routes of the sample help desk, but this database does not have its tables",
            hint=f"{NO_ROUTES}\nThen name it: export CDC_ROUTES=module:setup_router\n"
            "Or create the tables of the sample: python -m cdc_tasks create-schema",
        )


def _are_the_samples(settings: RouteSettings) -> bool:
    return settings.cdc_app is None and settings.cdc_routes == _SAMPLE
