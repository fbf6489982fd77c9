"""Recent changes: the last ones, what they fired, and why other routes did not."""

from __future__ import annotations

from typing import Annotated

import typer

from listener.cli.replay import parsed_time

__all__ = ["add_to"]


def add_to(cli: typer.Typer) -> None:
    """Add the command to the program."""
    cli.command()(changes)


def changes(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Only changes of this table, or schema.table.")
    ] = None,
    *,
    row: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="VALUE",
            help="Only changes of the row whose key id has this value; or COLUMN=VALUE of another key. "
            "Several: all must match.",
        ),
    ] = None,
    event: Annotated[
        str | None,
        typer.Option("--event", metavar="EVENT", help="Only insert, update, delete, truncate or enqueued."),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option(
            "--who",
            metavar="VALUE",
            help="Only changes of transactions with this value in their context; or NAME=VALUE.",
        ),
    ] = None,
    change_id: Annotated[
        str | None, typer.Option("--change", metavar="ID", help="Only the change with this id.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="As for `replay`.")] = None,
    until: Annotated[
        str,
        typer.Option("--until", metavar="TIME", help="Committed before then: a time like --since, or now."),
    ] = "now",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Up to this many of the last changes.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show the last changes, who made them, and what each route fired or why not. Of rows, only the keys."""
    from listener.cli.recent_changes import Asked, show_recent

    asked = Asked(
        table=table,
        rows=row or [],
        event=event or "",
        who=who,
        change_id=change_id,
        since=None if since is None else parsed_time(since, "--since"),
        until=None if until == "now" else parsed_time(until, "--until"),
    )
    show_recent(asked, limit, as_json=as_json)
