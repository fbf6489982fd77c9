"""The listener turns committed rows of a database into Celery tasks."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import structlog
import typer
from typer.core import TyperGroup

from cdc_tasks import command_line, logs
from cdc_tasks.command_line import Version, print_json
from cdc_tasks.errors import CDCError
from cdc_tasks.variables import unknown_variables
from listener.cli import backfill as backfill_commands
from listener.cli import control as control_commands
from listener.cli import explain as explain_commands
from listener.cli import parked as parked_commands
from listener.cli import recent as recent_commands
from listener.cli import replay as replay_commands
from listener.cli.console import console
from listener.cli.init import init
from listener.cli.variables import described_variables

# A command imports Celery and drivers only if it needs them: `--help` has to be fast.
if TYPE_CHECKING:
    from cdc_tasks.routing.router import BinlogRouter
    from listener.core.findings import Finding
    from listener.daemon.loop import Listener
    from listener.daemon.settings import ListenerSettings

__all__ = ["cli", "main"]

log = structlog.get_logger()


class _Group(TyperGroup):
    """The program; its help ends with a line for each environment variable."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        lines = (f"{name}: {description}" for name, description in described_variables().items())
        self.epilog = "\n\n".join(["Environment:", *lines])
        super().format_help(ctx, formatter)


cli = typer.Typer(
    name="python -m listener",
    cls=_Group,
    help=f"{__doc__} Without a command: run.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,  # a pretty traceback shows variables, which may be secrets
)
cli.add_typer(parked_commands.cli, name="parked")
control_commands.add_to(cli)
backfill_commands.add_to(cli)
replay_commands.add_to(cli)
explain_commands.add_to(cli)
recent_commands.add_to(cli)

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
App = Annotated[
    str | None,
    typer.Option(
        "--app",
        "-A",
        metavar="MODULE[:APP]",
        help="Your own Celery app, as for `celery -A`; the same as CDC_APP. It may also follow the command.",
    ),
]
LogLevel = Literal["debug", "info", "warning", "error"]


@cli.callback()
def start(context: typer.Context, *, app: App = None, _version: Version = False) -> None:
    if app is not None:
        os.environ["CDC_APP"] = app
    if context.invoked_subcommand is None:
        run()


@cli.command()
def run(
    *,
    accept_gap: Annotated[
        bool, typer.Option("--accept-gap", help="Continue without changes that the database no longer has.")
    ] = False,
    from_start: Annotated[
        bool,
        typer.Option(
            "--from-start",
            help="MySQL and MariaDB: at the first start, read the whole existing log, not only from now on.",
        ),
    ] = False,
    backfill: Annotated[
        bool,
        typer.Option(
            "--backfill",
            help="For the first start: send the rows of each table with routes that take READ, once.",
        ),
    ] = False,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="One JSON object a line, as with CDC_LOG_FORMAT=json.")
    ] = False,
    log_level: Annotated[
        LogLevel | None, typer.Option("--log-level", help="Instead of CDC_LOG_LEVEL.")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Also load the routes again when one of their files changes.")
    ] = False,
) -> None:
    """Run until stopped. SIGTERM or Ctrl-C: publish the current batch, then exit. SIGHUP: reload."""
    from listener.daemon.application import router_for
    from listener.daemon.lag_alarm import LagAlarm
    from listener.daemon.metrics import metrics_of
    from listener.daemon.reload import Reloading, run_again
    from listener.daemon.settings import ListenerSettings, LogSettings, load
    from listener.daemon.wiring import make_listener, read_source_status

    log_settings = load(LogSettings)
    is_json = json_logs or log_settings.cdc_log_format == "json"
    logs.configure(json=is_json, level=log_level or log_settings.cdc_log_level)
    is_started = False
    try:
        reloading = Reloading()
        # Before the routes are read: a later signal means newer routes.
        signal.signal(signal.SIGHUP, lambda _number, _frame: reloading.ask())
        settings = load(ListenerSettings)
        router = router_for(settings)
        if reload:
            reloading.watch_files()
        listener = make_listener(
            settings,
            router,
            accept_gap=accept_gap,
            from_start=from_start,
            loads_first=backfill,
            reloading=reloading,
        )
        metrics = metrics_of(settings, router, listener)
        is_started = True
        _stop_on_signals(listener)
        _collect_seldom()
        _warn(router)
        log.info("starting", name=settings.cdc_name, routes=len(router.routes))
        with metrics, LagAlarm(partial(read_source_status, settings, router), settings.cdc_lag_alarm):
            listener.run()
    except CDCError as error:
        if not (is_started or is_json):
            raise  # shown as by `check`
        log.error("failed", code=error.code, error=error.message, hint=error.hint)  # noqa: TRY400 - no traceback needed
        raise typer.Exit(1) from error
    if reloading.is_wanted:
        run_again()
    log.info("stopped", name=settings.cdc_name)


def _warn(router: BinlogRouter) -> None:
    for variable, hint in unknown_variables().items():
        log.warning("unknown_variable", variable=variable, hint=hint)
    if not (router.routes or router.accepted):
        from listener.daemon.start_findings import NO_ROUTES

        log.warning("no_routes", hint=NO_ROUTES)


def _collect_seldom() -> None:
    """Search for reference cycles rarely: a batch creates tens of thousands of objects and no cycle.

    With Python's default thresholds the collector takes a sixth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _stop_on_signals(listener: Listener) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: listener.stop())


@cli.command()
def check(*, as_json: AsJSON = False) -> None:
    """Check whether everything is ready, and show how to fix each problem. Exit status 1 if there is one."""
    from listener.cli.output import show_findings
    from listener.core.findings import State
    from listener.daemon.settings import ListenerSettings, load

    findings = list(_findings(load(ListenerSettings)))
    is_ready = all(each.state is not State.PROBLEM for each in findings)
    if as_json:
        fields = ("what", "state", "code", "found", "hint")
        print_json(
            {"ready": is_ready, "findings": [{f: getattr(each, f) for f in fields} for each in findings]}
        )
    else:
        show_findings(findings)
    raise typer.Exit(0 if is_ready else 1)


def _findings(settings: ListenerSettings) -> Iterator[Finding]:
    from listener.core.findings import finding_from
    from listener.daemon.application import router_for
    from listener.daemon.start_findings import find_in_routes, find_in_variables
    from listener.daemon.wiring import check_everything

    yield from find_in_variables()
    try:
        router = router_for(settings)
    except CDCError as error:
        yield finding_from("routes", error)
        return
    found = list(check_everything(settings, router))
    yield from find_in_routes(settings, router, found)
    yield from found


@cli.command()
def routes(*, as_json: AsJSON = False) -> None:
    """Print the table of routes; needs no database and no broker."""
    from listener.cli.output import describe_route, show_routes
    from listener.daemon.application import router_for
    from listener.daemon.settings import RouteSettings, load
    from listener.daemon.start_findings import NO_ROUTES

    settings = load(RouteSettings)
    router = router_for(settings)
    if as_json:
        print_json([describe_route(route) for route in router.routes])
        return
    show_routes(router.routes)
    if router.accepted:
        typer.echo(f"A transaction may enqueue: {', '.join(each.task for each in router.accepted)}.")
    if not (router.routes or router.accepted):
        typer.echo(f"CDC_ROUTES={settings.cdc_routes} has no routes. {NO_ROUTES}", err=True)


@cli.command()
def status(
    *,
    reading: Annotated[
        bool,
        typer.Option(
            "--reading", help="Exit status 0 even with alarms, if a listener reads and misses no changes."
        ),
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Show the listener's position, lag and slot.

    Exit status 0: everything is well; 1: no listener reads, or it misses changes; 3: a listener reads, with alarms.
    """
    from listener.cli.output import describe_status, show_status
    from listener.daemon.application import router_for
    from listener.daemon.settings import ListenerSettings, load
    from listener.daemon.wiring import read_status

    settings = load(ListenerSettings)
    found = read_status(settings, router_for(settings))
    if as_json:
        print_json(describe_status(found))
    else:
        show_status(found)
    raise typer.Exit(found.exit_status(only_reading=reading))


cli.command()(init)
cli.command()(console)


def main() -> None:
    """Run the command line; an error is printed as its message and hint, or as JSON."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does: routes are often in this directory
    sys.argv[1:] = command_line.app_first(sys.argv[1:])
    command_line.run(cli, program="cdc-listener")
