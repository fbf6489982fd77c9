"""Writes what a command did into the record that `python -m listener commands` and the console show."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from cdc_tasks.cli.chosen_app import chosen
from cdc_tasks.errors import CDCError
from cdc_tasks.record import Command, Outcome, about, record_commands, summed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Doing", "recorded"]


class Doing:
    """The results of a command, one target after the other."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[bool, str]] = []

    def did(self, result: str, *, went_well: bool = True) -> None:
        """Add the result for one target."""
        self.outcomes.append((went_well, result))


@contextmanager
def recorded(verb: str, names: Sequence[str], done: str) -> Iterator[Doing]:
    """Record who ran a command, its targets and the result; `done` is the result for many targets: `sent again`.

    An error is recorded too. The command succeeds even if the record cannot be written.
    """
    doing, command = Doing(), Command(verb=verb, arguments=about(names))
    try:
        yield doing
    except CDCError as error:
        _write(Outcome.refusal(command, error))
        raise
    if doing.outcomes:
        _write(Outcome.done(command, summed(doing.outcomes, done)))


def _write(outcome: Outcome) -> None:
    import redis
    from kombu.exceptions import OperationalError

    key = f"cdc:{os.environ.get('CDC_NAME') or 'cdc_tasks'}:record"
    try:
        with _store() as (client, prefix):
            for words in record_commands(f"{prefix}{key}", outcome):
                client.execute_command(*words)
    except (redis.RedisError, OperationalError, OSError, CDCError) as error:
        typer.echo(f"This is not in the record: {type(error).__name__}: {error}", err=True)


@contextmanager
def _store() -> Iterator[tuple[Any, str]]:
    """Open the Redis that has the checkpoint (the broker if it is Redis, else CACHE_URL); yield it and its prefix."""
    import redis

    from cdc_tasks import cache

    with chosen().connection_for_write() as connection:
        if connection.transport.driver_type != "redis":
            yield cache.client(), ""
            return
        connection.ensure_connection(
            max_retries=1, interval_start=0, interval_max=0, reraise_as_library_errors=False
        )
        with connection.channel() as opened:  # with Sentinel: to the master
            channel: Any = opened
            yield redis.Redis(connection_pool=channel.pool), channel.global_keyprefix or ""
