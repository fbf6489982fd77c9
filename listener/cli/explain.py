"""Why a change fires tasks, or does not: for a described change, a stored one, and each new one."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["add_to"]

AsJSON = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def add_to(cli: typer.Typer) -> None:
    """Add the commands to the program."""
    cli.command()(explain)
    cli.command()(watch)


def explain(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="A table, or schema.table.", show_default=False)
    ] = None,
    event: Annotated[
        str | None,
        typer.Argument(metavar="EVENT", help="insert, update, delete, truncate or read.", show_default=False),
    ] = None,
    *,
    before: Annotated[
        str | None, typer.Option("--before", metavar="JSON", help="The old row, or some of its columns.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="JSON", help="The new row, or some of its columns.")
    ] = None,
    change_id: Annotated[
        str | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="Instead of a table: the id of a change or task in the journal, parked or set aside.",
        ),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Show which routes a change fires, with queue, arguments and key; and which line of a route prevents others."""
    from listener.cli.explained import explain_found, explain_given

    if change_id is not None:
        if any(each is not None for each in (table, event, before, after)):
            raise typer.BadParameter("use it instead of a table, an event and rows", param_hint="--id")
        explain_found(change_id, as_json=as_json)
        return
    if table is None or event is None:
        raise typer.BadParameter(
            "name a table and an event, e.g. tickets update --after '{\"id\": 7}', or a change with --id"
        )
    explain_given(table, event, before, after, as_json=as_json)


def watch(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TABLE", help="Only these: a table, schema.table, or globs.", show_default=False
        ),
    ] = None,
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Only rows with COLUMN=VALUE, before or after the change; or != < <= > >=. Several: all must be true.",
        ),
    ] = None,
    no_values: Annotated[
        bool, typer.Option("--no-values", help="Show no row values, only column names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")] = False,
) -> None:
    """Show each committed change, the tasks it would fire, and why other routes do not fire. Sends nothing."""
    from listener.cli.watched import watch_changes

    watch_changes(tables or [], where or [], as_json=as_json, has_values=not no_values)
