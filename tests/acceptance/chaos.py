"""Attacks on the whole system: the listener, the broker, the database and the network fail while clients write.

    make chaos ARGS="--kills 200 --seed 7"
    make chaos ARGS="--kills 200 --source mariadb"
    make chaos ARGS="--kills 50 --target enqueue --source mysql"
    make chaos ARGS="--kills 200 --target tables"
    make chaos ARGS="--kills 100 --target reload"
    make chaos ARGS="--kills 20 --target backfill --rows 50000"
    make chaos ARGS="--kills 20 --target backfill --rows 50000 --source mysql"
    make chaos ARGS="--kills 50 --target keys --changes 100000 --keys 1000"
    make chaos ARGS="--kills 50 --target keys --changes 100000 --keys 1000 --broker rabbitmq"
    make chaos ARGS="--target alerts"
    make chaos ARGS="--kills 50 --target context --changes 1000000"
    make chaos ARGS="--kills 10 --target context --changes 20000 --source mysql"
    make chaos ARGS="--target upgrade --changes 500 --kills 0"

On MySQL and MariaDB tables are redefined meanwhile, and the listener is stopped and killed; with `--target enqueue`
and `--target backfill` the listener, the broker and the database are killed there. Clients enqueue tasks between their
rows.

Prints its seed. Exit status 1, and what is wrong, unless every committed change, and every task that was enqueued, is
in the queues exactly once, in commit order, with the values that were committed, and nothing that was rolled back. With
`--target tables`: or is in a gap that the listener told. With `--record` what came of it is kept in
docs/correctness/results.json, and docs/correctness.md is written from there.
"""

from __future__ import annotations

import random
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Literal, NoReturn

import typer

from harness.server_process import ServerProcess
from tests.acceptance.alerts import Incidents
from tests.acceptance.attribution import attribute
from tests.acceptance.binlog_definitions import disturbed
from tests.acceptance.binlog_world import BinlogWorld
from tests.acceptance.changing_tables import ChangingTables
from tests.acceptance.correctness import RESULTS, Outcome, Record, add, write_page
from tests.acceptance.keys import SIDES, KeyAttacks
from tests.acceptance.network import Cable
from tests.acceptance.parking import POINTS
from tests.acceptance.reads import ReadAttacks
from tests.acceptance.upgrade import VERSION_0_1_0, Upgrade, unpack_version
from tests.acceptance.world import World

__all__ = [
    "FAULTS",
    "TOWARDS",
    "Attack",
    "attack",
    "attack_broker",
    "attack_database",
    "attack_listener",
    "attack_reload",
    "disturb",
    "kill_at",
]

Target = Literal[
    "listener",
    "broker",
    "database",
    "network",
    "all",
    "reload",
    "tables",
    "keys",
    "backfill",
    "enqueue",
    "alerts",
    "context",
    "upgrade",
]
Source = Literal["postgresql", "mysql", "mariadb"]
BrokerKind = Literal["redis", "rabbitmq"]
_LONGEST_RELOAD: Final = 300.0  # seconds, on a machine with other work
Attack = Callable[[World], str]

# --- Attacks: each returns what was done ------------------------------------------------------------------


def attack_listener(world: World) -> str:
    """SIGKILL at a random moment, or parked at a named point; now and then SIGTERM, which ends it in order."""
    dice = world.dice
    kind = dice.choices(["start", "work", "point", "end"], [10, 30, 55, 5])[0]
    if kind == "point":
        return kill_at(world, dice.choice(POINTS), hit=dice.randint(1, 8))
    if kind == "start":
        world.start_listener()
        time.sleep(dice.uniform(0, 2))
        world.kill_listener()
        return "listener killed while it started"
    world.wait_for_streaming()
    time.sleep(dice.uniform(0, 1))
    if kind == "end":
        world.end_listener()
        return "listener ended with SIGTERM"
    world.kill_listener()
    return "listener killed at work"


def kill_at(world: World, point: str, *, hit: int, patience: float = 5) -> str:
    """SIGKILL to a listener that parked at a point; or wherever it is, should it not come there in time."""
    parked = world.start_listener((point, hit)).wait_parked(seconds=patience)
    world.kill_listener()
    return f"listener killed: {point}" if parked else "listener killed at work"


def attack_broker(world: World) -> str:
    """SIGKILL to the broker, which comes back with what is in its append-only file."""
    return _crash(world, world.broker)


def attack_database(world: World) -> str:
    """SIGKILL to the database, which comes back and recovers."""
    return _crash(world, world.database)


def attack_reload(world: World) -> str:
    """Make the listener load its routes again, with SIGHUP: it has to stream again in the same process."""
    listener = world.listener
    world.wait_for_streaming()
    starts, refused = len(listener.events("streaming")), len(listener.events("reload_refused"))
    listener.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + _LONGEST_RELOAD
    while len(listener.events("streaming")) == starts:
        listener.check_alive()
        assert len(listener.events("reload_refused")) == refused, listener.log[-3000:]
        assert time.monotonic() < deadline, listener.log[-3000:]
        time.sleep(0.1)
    return "routes loaded again"


def _crash(world: World, server: ServerProcess) -> str:
    world.wait_for_progress()
    time.sleep(world.dice.uniform(0, 0.5))
    away = world.dice.choice([0, 0.2, 1.5])
    server.kill()
    time.sleep(away)
    server.start()
    return f"{server.name} killed"


def attack_network(world: World) -> str:
    """Stall, reset, half-close, refuse, or cut within a message; towards the database, the broker or both."""
    dice = world.dice
    # Seven seconds are longer than the listener waits for the broker's answer: what was held comes late.
    return disturb(world, dice.choice(list(FAULTS)), dice.choice(list(TOWARDS)), dice.choice([0.1, 1, 7]))


def disturb(world: World, fault: str, towards: str, seconds: float) -> str:
    world.wait_for_progress()
    cables = world.cables[TOWARDS[towards]]
    for cable in cables:
        FAULTS[fault](cable)
    time.sleep(seconds)
    for cable in cables:
        cable.mend()
    return f"network {fault}: {towards}"


TOWARDS: Final = {"database": slice(0, 1), "broker": slice(1, 2), "both": slice(0, 2)}
FAULTS: Final[dict[str, Callable[[Cable], None]]] = {
    "stalled": lambda cable: cable.stall(new_ones=True),
    "stalled, not for new connections": lambda cable: cable.stall(new_ones=False),
    "reset": Cable.reset,
    "half-closed to the server": lambda cable: cable.half_close(to_server=True),
    "half-closed to the listener": lambda cable: cable.half_close(to_server=False),
    "refused": Cable.refuse,
    "cut within a message": lambda cable: cable.cut_after(50_000),
}

_ATTACKS: Final[dict[Target, Sequence[Attack]]] = {
    "listener": [attack_listener],
    "broker": [attack_broker],
    "database": [attack_database],
    "network": [attack_network],
    "all": [attack_listener, attack_broker, attack_database, attack_network],
    "reload": [attack_reload],
    "enqueue": [attack_listener, attack_broker, attack_database],
}


def attack(
    world: World,
    attacks: Iterable[Attack],
    *,
    seed: int,
    rows_per_second: int = 1000,
    said: Callable[[str], None] = print,
) -> Counter[str]:
    """Attack while clients write; returns what was done how often."""
    done: Counter[str] = Counter()
    with world.writers(seed=seed, rows_per_second=rows_per_second):
        for number, each in enumerate(attacks, start=1):
            what = each(world)
            done[what] += 1
            said(f"{number}: {what}; {world.published()} messages")
    return done


# --- Targets: each attacks for as long as the options say, and returns what came of it ---------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    kills: int
    seed: int
    target: Target
    source: Source
    broker: BrokerKind
    changes: int
    keys: int
    workers: int
    broker_kills: int | None
    without_keys: bool
    notes: Path | None
    rows: int
    old: str


def _on_the_log(options: Options) -> Outcome:
    """Kill the listener, a server or the network while clients write."""
    source = options.source
    if source != "postgresql" and options.target != "enqueue":
        done: list[int] = []
        found = disturbed(
            source, seed=options.seed, stops=options.kills, said=typer.echo, counted=done.append
        )
        return Outcome("exactly once", changes=sum(done), faults=found)
    seed = options.seed
    with World(seed=seed) if source == "postgresql" else BinlogWorld(source, seed=seed) as world:
        attacks = (world.dice.choice(_ATTACKS[options.target]) for _ in range(options.kills))
        # Everything is looked at in memory in the end: many kills take long, so the writers go slowly.
        pace = 50 if options.target == "reload" else 200  # a reload takes longer than a kill
        done_what = attack(world, attacks, seed=seed, rows_per_second=pace, said=typer.echo)
        committed = world.committed_by_kind()
        _tell_counts(done_what)
        typer.echo("committed: " + ", ".join(f"{n} {event}" for event, n in committed.items()))
        found = world.settle()
    return Outcome("exactly once, in commit order", changes=sum(committed.values()), faults=found)


def _on_keys(options: Options) -> Outcome:
    of_broker = options.kills // 10 if options.broker_kills is None else options.broker_kills
    with KeyAttacks(
        seed=options.seed,
        changes=options.changes,
        keys=options.keys,
        workers=options.workers,
        side=SIDES[options.broker],
        has_keys=not options.without_keys,
        notes=options.notes,
        said=typer.echo,
    ) as attacks:
        found = attacks.run(worker_kills=options.kills, broker_kills=of_broker)
    return Outcome(
        "in the order of its key, one at a time",
        changes=options.changes,
        faults=found,
        attacks=options.kills + of_broker,
    )


def _on_backfills(options: Options) -> Outcome:
    with ReadAttacks(seed=options.seed, rows=options.rows, source=options.source, said=typer.echo) as attacks:
        found = attacks.run(options.kills)
    return Outcome("once, read or streamed", changes=options.rows, faults=found)


def _on_alerts(_: Options) -> Outcome:
    with Incidents(typer.echo) as incidents:
        found = incidents.run()
        return Outcome("told by an alert", changes=0, faults=found, attacks=incidents.happened)


def _on_tables(options: Options) -> Outcome:
    with ChangingTables(seed=options.seed) as tables:
        found = tables.run(options.kills, said=typer.echo)
    _tell_counts(tables.done)
    return Outcome("once, or in a gap that was told", changes=tables.done["rows"], faults=found)


def _on_contexts(options: Options) -> Outcome:
    source: Any = "pgoutput" if options.source == "postgresql" else options.source
    report = attribute(
        options.changes, kills=options.kills, source=source, seed=options.seed, said=typer.echo
    )
    return Outcome("with its own context", changes=report.rows, faults=report.wrong, attacks=report.kills)


def _on_upgrade(options: Options) -> Outcome:
    with (
        TemporaryDirectory() as directory,
        Upgrade(
            unpack_version(options.old, Path(directory)),
            seed=options.seed,
            source=options.source,
            broker=options.broker,
            said=typer.echo,
        ) as upgrade,
    ):
        found = upgrade.run(options.changes, killed=options.kills > 0)
        return Outcome(
            "once, by the old version or the new one", changes=len(upgrade.committed), faults=found, attacks=1
        )


_TARGETS: Final[dict[Target, Callable[[Options], Outcome]]] = {
    "keys": _on_keys,
    "backfill": _on_backfills,
    "alerts": _on_alerts,
    "tables": _on_tables,
    "context": _on_contexts,
    "upgrade": _on_upgrade,
}


def main(
    *,
    kills: Annotated[
        int, typer.Option(help="How many attacks on each target; with --target upgrade 0 for SIGTERM.")
    ] = 200,
    seed: Annotated[
        int | None, typer.Option(help="Makes the same decisions again; random if not given.")
    ] = None,
    target: Annotated[
        Target,
        typer.Option(
            help="What is attacked; tables: they change while the listener dies; keys: workers with tasks in order; "
            "reload: not killed, but told to load its routes again; backfill: all three, while rows are read; "
            "enqueue: all three, also on MySQL and MariaDB; "
            "alerts: ten incidents, each of which Prometheus has to tell; "
            "context: the listener, while eight clients write transactions with contexts; "
            "upgrade: an old version is stopped in the middle of traffic, and this one goes on."
        ),
    ] = "listener",
    source: Annotated[Source, typer.Option(help="The database.")] = "postgresql",
    changes: Annotated[
        int,
        typer.Option(
            help="With --target keys: how many changes; with context, and with upgrade in each of its four parts: "
            "how many transactions."
        ),
    ] = 100_000,
    keys: Annotated[int, typer.Option(help="With --target keys: over how many keys.")] = 1_000,
    workers: Annotated[
        int, typer.Option(min=1, help="With --target keys: how many workers, of two processes each.")
    ] = 4,
    broker: Annotated[BrokerKind, typer.Option(help="With --target keys and upgrade: the broker.")] = "redis",
    broker_kills: Annotated[
        int | None,
        typer.Option(help="With --target keys: how often the broker is killed; default: a tenth of --kills."),
    ] = None,
    without_keys: Annotated[
        bool,
        typer.Option(
            "--without-keys", help="With --target keys: the tasks have none, so that faults are found."
        ),
    ] = False,
    notes: Annotated[
        Path | None, typer.Option(help="With --target keys: a file to keep what the tasks have noted.")
    ] = None,
    rows: Annotated[int, typer.Option(help="With --target backfill: how many rows are there.")] = 50_000,
    old: Annotated[
        str, typer.Option(help="With --target upgrade: a commit or tag that has the old version.")
    ] = VERSION_0_1_0,
    record: Annotated[
        bool, typer.Option("--record", help="Keep what came of it, and write docs/correctness.md.")
    ] = False,
) -> None:
    """Kill again and again while clients write, then hold the queues against what was committed."""
    seed = random.randrange(10**6) if seed is None else seed
    options = Options(
        kills=kills,
        seed=seed,
        target=target,
        source=source,
        broker=broker,
        changes=changes,
        keys=keys,
        workers=workers,
        broker_kills=broker_kills,
        without_keys=without_keys,
        notes=notes,
        rows=rows,
        old=old,
    )
    command = _command(sys.argv[1:], seed)
    typer.echo(f"seed {seed}: {command}")
    began = time.monotonic()
    outcome = _TARGETS.get(target, _on_the_log)(options)
    if record:
        add(
            Record(
                target=target,
                source=source,
                broker=broker,
                date=datetime.now(UTC).date().isoformat(),
                version=metadata.version("cdc-tasks"),
                seed=seed,
                attacks=kills if outcome.attacks is None else outcome.attacks,
                changes=outcome.changes,
                faults=len(outcome.faults),
                seconds=round(time.monotonic() - began),
                command=command,
            ),
            RESULTS,
        )
        write_page(RESULTS)
    _tell(outcome)


def _command(arguments: Sequence[str], seed: int) -> str:
    """Return the command that does the same again."""
    given = [each for each in arguments if each != "--record"]
    if not any(each.partition("=")[0] == "--seed" for each in given):
        given += ["--seed", str(seed)]
    return f"make chaos ARGS='{shlex.join(given)}'"


def _tell_counts(done: Mapping[str, int]) -> None:
    for what, count in sorted(done.items()):
        typer.echo(f"{count:6} x {what}")


def _tell(outcome: Outcome) -> NoReturn:
    for fault in outcome.faults[:50]:
        typer.echo(fault)
    typer.echo(
        f"{len(outcome.faults)} faults"
        if outcome.faults
        else f"each committed change is there {outcome.promise}"
    )
    raise typer.Exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
