"""Commands for keys, accounts, preferences, the master cache, workers and the sample tables."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from cdc_tasks import command_line, logs
from cdc_tasks.cli import chosen_app
from cdc_tasks.cli import dead_letters as dead_letter_commands
from cdc_tasks.cli import keys as key_commands
from cdc_tasks.cli.driver_errors import explain
from cdc_tasks.cli.recorded import recorded
from cdc_tasks.command_line import Version, print_json
from cdc_tasks.words import counted

__all__ = ["cli", "main"]

cli = typer.Typer(
    name="python -m cdc_tasks",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a pretty traceback would show variables, and so secrets
    help=__doc__,
)
cli.add_typer(dead_letter_commands.cli, name="dead-letters")
cli.add_typer(key_commands.cli, name="keys")


@cli.callback()
def start(
    *,
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            "-A",
            metavar="MODULE[:APP]",
            envvar="CDC_APP",
            help="Your own Celery app with cdc_tasks.install, as for `celery -A`; without it, cdc-tasks' own. "
            "It may also follow the command.",
        ),
    ] = None,
    _version: Version = False,
) -> None:
    """Accept the options that need no command."""
    if app is not None:
        chosen_app.choose(app)


@cli.command("new-key")
def new_key() -> None:
    """Print a new key for CDC_SECRET_KEY."""
    from cdc_tasks.notify import sealed_secrets

    print(sealed_secrets.new_key())  # noqa: T201  # the command's result


@cli.command("rotate-key")
def rotate_key() -> None:
    """Encrypt every account's secret with the first key of CDC_SECRET_KEY. Then the other keys can be removed."""
    from cdc_tasks import db
    from cdc_tasks.notify import accounts

    with db.session() as session:
        _say(
            f"{counted(accounts.reseal_all(session), 'secret')} encrypted with the first key of CDC_SECRET_KEY."
        )


@cli.command("connect-account")
def connect_account(
    email: Annotated[str, typer.Argument(help="The user's e-mail address in the table users.")],
    service: Annotated[str, typer.Argument(help="slack, teams, or your own service.")],
    address: Annotated[
        str | None,
        typer.Option(help="Slack: a channel or user id. Without it Slack finds the user by e-mail."),
    ] = None,
) -> None:
    """Connect an account for messages. Prompts for its token or webhook URL, or reads it from standard input."""
    from cdc_tasks import db
    from cdc_tasks.notify import accounts

    _load_tasks()
    label = "Webhook URL" if service == "teams" else "Token"
    secret = typer.prompt(label, hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    with db.session() as session:
        account_id = accounts.connect(
            session, email=email, service=service, address=address, secret=SecretStr(secret.strip())
        )
    _say(f"Account {account_id} connected: {email} on {service}.")


@cli.command("accounts")
def list_accounts(
    *, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """List the connected accounts, without their secrets."""
    from sqlalchemy import select

    from cdc_tasks import db
    from cdc_tasks.notify.models import ConnectedAccount

    with db.session() as session:
        found: list[dict[str, Any]] = [
            {
                "id": each.id,
                "user": each.user.email,
                "service": each.service,
                "address": each.address,
                "active": each.is_active,
            }
            for each in session.scalars(select(ConnectedAccount).order_by(ConnectedAccount.id))
        ]
    if as_json:
        print_json(found)
        return
    table = Table("id", "user", "service", "address", "active")
    for each in found:
        active = "yes" if each["active"] else "no"
        table.add_row(str(each["id"]), each["user"], each["service"], each["address"] or "", active)
    Console().print(table)


@cli.command("preferences")
def set_preferences(
    email: Annotated[str, typer.Argument(help="The user's e-mail address in the table users.")],
    *,
    mute: Annotated[list[str] | None, typer.Option(help="A kind of message not to send; repeatable.")] = None,
    unmute: Annotated[
        list[str] | None, typer.Option(help="A kind of message to send again; repeatable.")
    ] = None,
    manager_copies: Annotated[
        bool | None,
        typer.Option(
            help='Whether to send the "Manager:" messages about the tickets of others.',
            show_default="unchanged",
        ),
    ] = None,
    quiet: Annotated[
        str | None,
        typer.Option(help="Quiet hours, e.g. 22:00-07:00, or none. Messages are sent when they end."),
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="The time zone of the quiet hours, e.g. Europe/Berlin.")
    ] = None,
) -> None:
    """Show or change which messages a user gets, and when."""
    from cdc_tasks import db
    from cdc_tasks.notify import preferences

    _load_tasks()
    changes = preferences.PreferenceChanges(
        mute=mute or [], unmute=unmute or [], manager_copies=manager_copies, quiet=quiet, time_zone=time_zone
    )
    with db.session() as session:
        _say(preferences.change(session, email, changes))


@cli.command("health")
def health(
    *,
    worker: Annotated[
        str | None,
        typer.Option(
            help="The worker's name, as `celery status` shows it.", show_default="the one on this machine"
        ),
    ] = None,
    any_worker: Annotated[bool, typer.Option("--any", help="Ask any worker.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send a task to a worker through the broker, and wait for its answer. Exit status 1 without an answer."""
    from cdc_tasks.worker import health

    _load_tasks()
    found = health.check(None if any_worker else worker or health.own_worker(), timeout=timeout)
    if as_json:
        print(json.dumps(asdict(found)))  # noqa: T201  # the command's result
        return
    _say(f"{found.worker} answered after {found.milliseconds} ms.")
    if found.dead_letters:
        _say(f"{counted(found.dead_letters, 'dead letter')}: python -m cdc_tasks dead-letters list")
    if found.parked:
        _say(f"{counted(found.parked, 'parked change')}: python -m listener parked list")
    if found.waiting:
        _say(
            f"{counted(found.waiting, 'message waits', 'messages wait')} to be due: python -m cdc_tasks waiting"
        )


@cli.command("waiting")
def list_waiting(
    *, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False
) -> None:
    """Count the messages in Redis that are not due yet, by queue. `celery inspect scheduled` has those due soon."""
    from cdc_tasks.worker import waiting_counts

    chosen_app.chosen()
    counts = waiting_counts.counts()
    if as_json:
        print(json.dumps(counts))  # noqa: T201  # its output is what it is for
        return
    table = Table("queue", "messages")
    for queue, number in counts.items():
        table.add_row(queue, str(number))
    Console().print(table)


@cli.command("refresh-cache")
def refresh_cache(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Master tables.", show_default="all of them")
    ] = None,
) -> None:
    """Refresh the master cache in this process, without a worker."""
    from cdc_tasks import master_cache

    _load_tasks()
    chosen = list(tables or master_cache.TABLE_TO_CACHE_KEYS)
    with recorded("refresh_cache", chosen, "refreshed") as doing:
        for table in chosen:
            result = master_cache.refresh(table)
            doing.did(result)
            _say(result)


@cli.command("give-back-unacked")
def give_back_unacked() -> None:
    """Requeue the unacknowledged messages of dead workers of version 0.1, or with kombu's own transport (Redis).

    Stop such workers first, with SIGTERM: otherwise their running tasks would run a second time.
    """
    import redis

    from cdc_tasks.broker import other_workers
    from cdc_tasks.broker.queues import OLD_NAMES

    app = chosen_app.chosen()
    with app.connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            _say("The broker is not Redis: it requeues the messages of a dead worker itself.")
            return
        channel: Any = connection.default_channel
        number = other_workers.give_back(
            redis.Redis(connection_pool=channel.pool),
            [*app.amqp.queues, *OLD_NAMES],
            prefix=channel.global_keyprefix,
        )
        with recorded("give_back_unacked", [], "requeued") as doing:
            doing.did(f"{counted(number, 'message')} requeued")
    _say(f"{counted(number, 'message')} requeued.")


@cli.command("schema")
def schema(database: Annotated[Literal["postgresql", "mysql"], typer.Argument()] = "postgresql") -> None:
    """Print the tables of the sample help desk as SQL."""
    from cdc_tasks.helpdesk.schema import sql

    print(sql(database), end="")  # noqa: T201  # the command's result


@cli.command("create-schema")
def create_schema() -> None:
    """Create the missing tables of the sample help desk in DATABASE_URL."""
    from cdc_tasks import db
    from cdc_tasks.helpdesk.schema import create

    create(db.engine())
    _say("The sample tables exist.")


def main() -> None:
    """Run a command; an error is printed as its message and hint, or as JSON."""
    logs.configure(level="warning")
    sys.argv[1:] = command_line.app_first(sys.argv[1:])
    command_line.run(cli, program="cdc-tasks", explain=explain)


def _load_tasks() -> None:
    """Import what a worker imports, including the services and cache keys of CDC_TASK_MODULES."""
    from cdc_tasks.user_code import import_task_modules

    app = chosen_app.chosen()
    import_task_modules(app.conf.imports)
    app.loader.import_default_modules()


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
