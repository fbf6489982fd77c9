"""Writes a first file of routes for the existing tables."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from cdc_tasks.command_line import print_json
from cdc_tasks.errors import CDCError
from cdc_tasks.words import counted

__all__ = ["init"]

_NAME = "cdc_routes"


class FirstRoutesError(CDCError):
    """A first file of routes cannot be written."""


def init(*, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """Write a first file of routes for the tables of DATABASE_URL, and print the next commands.

    It asks no questions, does not change the database, and overwrites no file.
    """
    from listener.daemon.first_routes import obstacle, option_for, routes_file, split_by_use
    from listener.daemon.settings import ListenerSettings, load
    from listener.daemon.wiring import read_existing_tables

    settings = load(ListenerSettings)
    home, tables = read_existing_tables(settings)
    used, left_out = split_by_use(tables)
    if not used:
        raise FirstRoutesError(
            "The database has no table that a route can name: "
            + (
                "; ".join(f"{each.name} is left out: {obstacle(each)}" for each in left_out) or "it is empty."
            ),
            hint="Create the tables of your application, or correct DATABASE_URL.",
        )
    module, app = _free_name(), settings.cdc_app
    path = _write(module, routes_file(tables, module=module, home=home, app=app))
    next_commands = [
        f"export CDC_ROUTES={module}:setup_router",
        f"python -m listener {option_for(app)}check",
        f"python -m listener {option_for(app)}run",
    ]
    if as_json:
        print_json(
            {
                "file": str(path),
                "tables": [f"{each.schema}.{each.name}" for each in used],
                "left_out": {f"{each.schema}.{each.name}": obstacle(each) for each in left_out},
                "next": next_commands,
            }
        )
        return
    typer.echo(f"{path.name} has {counted(len(used), 'table')}.")
    for each in left_out:
        typer.echo(f"Left out: {each.name}: {obstacle(each)}")
    typer.echo(
        "Remove the tables that no task needs. Then:\n" + "\n".join(f"  {each}" for each in next_commands)
    )


def _free_name() -> str:
    """Return a module name that no file in this directory and no installed module has."""
    names = (_NAME if number == 1 else f"{_NAME}_{number}" for number in count(1))
    return next(each for each in names if not Path(f"{each}.py").exists() and find_spec(each) is None)


def _write(module: str, text: str) -> Path:
    path = Path.cwd() / f"{module}.py"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise FirstRoutesError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Change to the directory of your own code first.",
        ) from error
    return path
