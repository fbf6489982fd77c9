"""The console: a web page beside the listener."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["console"]


def console(
    *,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="Instead of CDC_CONSOLE_ADDRESS.")
    ] = None,
) -> None:
    """Serve a web page that shows changes, tasks and failures, and gives commands. Ctrl-C ends it."""
    from cdc_tasks import logs
    from cdc_tasks.extras import check_extra
    from cdc_tasks.settings import load as load_settings
    from listener.console.settings import ConsoleSettings, check_exposure
    from listener.daemon.settings import ListenerSettings, LogSettings, load

    check_extra("console")
    log_settings = load(LogSettings)
    logs.configure(json=log_settings.cdc_log_format == "json", level=log_settings.cdc_log_level)
    given = {} if address is None else {"cdc_console_address": address}
    settings = load_settings(ConsoleSettings, **given)
    check_exposure(settings)
    listener = load(ListenerSettings)
    from listener.console.serve import serve

    serve(listener, settings)
