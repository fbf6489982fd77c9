"""The listener's commands as an operator types them, on a real database and a real broker."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from harness.embedded_servers import ValkeyServer
from harness.server_process import free_port
from harness.waiting import at_most, wait_until
from tests.support.listening import wait_for_listener
from tests.support.metrics import Pages
from tests.support.operators import ROUTES, Operator, operator_on, tasks_in

if TYPE_CHECKING:
    from tests.conftest import Broker, Database


@pytest.fixture
def operator(database: Database, broker: Broker) -> Operator:
    return operator_on(database, broker)


def test_help_names_every_command_and_every_variable() -> None:
    from listener.daemon.settings import ListenerSettings

    told = Operator().types("--help").stdout
    for word in ("run", "check", "routes", "status", "parked"):
        assert word in told
    assert [name for name in ListenerSettings.model_fields if name.upper() not in told] == []
    for command in (["run"], ["check"], ["routes"], ["status"], ["parked"], ["parked", "replay"]):
        done = Operator().types(*command, "--help")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_settings_that_cannot_be_used_are_all_told_at_once(command: str) -> None:
    done = Operator(CDC_NAME="Not This", CDC_PLUGIN="other").types(command)
    assert done.returncode == 1
    for variable in ("DATABASE_URL", "CDC_NAME", "CDC_PLUGIN"):
        assert variable in done.stderr
    assert "Traceback" not in done.stderr


_PLAIN = {"key": "", "group": "", "on_failure": "", "on_full": "pause", "even_muted": ""}


def test_routes_are_shown_without_database_and_broker() -> None:
    operator = Operator(CDC_ROUTES=f"{ROUTES}:routes")
    shown = operator.asks("routes")
    assert len({each.pop("id") for each in shown}) == 3
    assert [each.pop("place") for each in shown] == [
        f"tests/support/routes/for_commands.py:{line}" for line in (14, 15, 18)
    ]
    assert shown == [
        {
            "table": "public.roles",
            "events": "INSERT, UPDATE, DELETE, TRUNCATE",
            "task": "tests.refresh",
            "when": "",
            "argument": "_table",
            "columns": "all",
            "queue": "",
            "grouping": "coalesce",
            "sending": "",
            **_PLAIN,
        },
        {
            "table": "public.roles",
            "events": "UPDATE",
            "task": "tests.renamed",
            "when": "changed('name')",
            "argument": "the change",
            "columns": "id",
            "queue": "",
            "grouping": "",
            "sending": "",
            **_PLAIN,
        },
        {
            "table": "public.roles",
            "events": "INSERT",
            "task": "tests.many",
            "when": "",
            "argument": "the change",
            "columns": "all",
            "queue": "cdc_bulk",
            "grouping": "batch of 500",
            "sending": "",
            **_PLAIN,
        },
    ]
    table = operator.types("routes").stdout
    assert "tests.refresh" in table
    assert "batch of 500" in table
    assert "on full" not in table  # as no route has anything else than usual


def test_routes_are_shown_with_their_keys_and_policies() -> None:
    shown = Operator(CDC_ROUTES=f"{ROUTES}:keyed").asks("routes")
    names = ("key", "group", "on_failure", "on_full", "even_muted")
    assert [[each[name] for name in names] for each in shown] == [
        ["id", "", "continue", "pause", ""],
        ["tenant_id, id", "orders", "hold", "set_aside", "yes"],
        ["_table", "", "continue", "grow", ""],
    ]
    table = Operator(CDC_ROUTES=f"{ROUTES}:keyed", COLUMNS="300").types("routes").stdout
    for told in ("key", "group", "on failure", "on full", "even muted", "tenant_id, id", "set_aside"):
        assert told in table


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("nowhere.routes:setup", "there is no module nowhere.routes"),
        (f"{ROUTES}:nothing", "has no attribute 'nothing'"),
        (f"{ROUTES}:no_router", "it is dict, not a BinlogRouter"),
    ],
)
def test_routes_that_are_not_there_are_told_with_the_way_to_name_them(reference: str, told: str) -> None:
    done = Operator(CDC_ROUTES=reference).types("routes")
    assert done.returncode == 1
    assert told in done.stderr
    assert "CDC_ROUTES=myapp.routes:setup_router" in done.stderr
    assert "Traceback" not in done.stderr


def test_from_check_to_a_task_to_a_stop(operator: Operator, database: Database, broker: Broker) -> None:
    checked = operator.asks("check")
    assert checked["ready"], checked
    before = operator.types("status")
    assert (before.returncode, "never started" in before.stdout) == (1, True)

    with operator.running() as listener:
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles VALUES (1, 'Auditor'); UPDATE roles SET name = 'Admin'")
        wait_until(lambda: broker.client.llen("celery") == 2, what="two tasks in the default queue")
        assert [each["headers"]["task"] for each in tasks_in(broker, "celery")] == [
            "tests.renamed",
            "tests.refresh",
        ]
        wait_until(lambda: broker.client.llen("cdc_bulk") == 1, what="the batch that is not full")

        status = wait_until(lambda: _caught_up(operator), what="the listener to have caught up")
        assert status["listener"] == "running"
        assert status["checkpoint"]
        assert status["alarms"] == []
        assert f"slot {database.name}" in operator.types("status").stdout
        assert operator.asks("check")["ready"]

        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=at_most(10)) == 0
    stopped = operator.types("status")
    assert (stopped.returncode, "no reader" in stopped.stdout) == (1, True)


def _caught_up(operator: Operator) -> Any:
    status = operator.asks("status")
    return status if status["lag_bytes"] == 0 else None


_MADE_AGAIN = (
    "DROP TABLE roles; CREATE TABLE roles (id int PRIMARY KEY, name text); INSERT INTO roles VALUES (1)"
)


def test_a_table_made_again_under_a_running_listener_is_a_gap_until_somebody_accepts_it(
    operator: Operator, database: Database, broker: Broker
) -> None:
    with operator.running():
        wait_for_listener(database, timeout=30)
        wait_until(lambda: broker.client.hget(f"cdc:{database.name}:checkpoint", "notes"), what="notes")
        database.execute(_MADE_AGAIN)
        (gap,) = wait_until(lambda: operator.asks("status")["gaps"], what="the gap", timeout=30)
        assert gap.startswith("changes of public.roles from ")
        assert any(gap in alarm for alarm in operator.asks("status")["alarms"])
        assert operator.types("status").returncode == 1
        checked = operator.types("check")
        assert (checked.returncode, gap in checked.stdout) == (1, True)
        database.execute("INSERT INTO roles VALUES (2)")
        wait_until(lambda: broker.client.llen("celery"), what="a task of the new table")
    with operator.running("run", "--accept-gap"):
        wait_until(lambda: operator.asks("status")["gaps"] == [], what="the gap to be accepted", timeout=30)
        assert operator.asks("check")["ready"]


def test_a_table_made_again_while_nobody_listens_keeps_the_listener_from_starting_until_that_is_accepted(
    operator: Operator, database: Database, broker: Broker
) -> None:
    with operator.running() as listener:
        wait_for_listener(database, timeout=30)
        wait_until(lambda: broker.client.hget(f"cdc:{database.name}:checkpoint", "notes"), what="notes")
        listener.send_signal(signal.SIGTERM)
        assert listener.wait(timeout=30) == 0
    database.execute(_MADE_AGAIN)
    for _ in range(2):
        checked = operator.types("check")
        assert (checked.returncode, "public.roles (another table has this name now" in checked.stdout) == (
            1,
            True,
        )
        refused = operator.types("run", "--json-logs")
        failed = json.loads(refused.stderr.splitlines()[-1])
        assert (refused.returncode, failed["event"]) == (1, "failed")
        assert "public.roles" in failed["error"]
        assert "--accept-gap" in failed["hint"]
    with operator.running("run", "--accept-gap"):
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles VALUES (2)")
        wait_until(lambda: broker.client.llen("celery"), what="a task of the new table")
    assert operator.asks("check")["ready"]


def test_a_pause_because_of_a_long_queue_is_told_while_it_lasts(
    operator: Operator, database: Database, broker: Broker
) -> None:
    operator.environment |= {"CDC_ROUTES": f"{ROUTES}:fixed", "CDC_MAX_QUEUE": "10", "CDC_BATCH_SIZE": "20"}
    pages = Pages(free_port())
    operator.environment["CDC_METRICS_ADDRESS"] = pages.address
    with operator.running():
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles SELECT g, 'r' FROM generate_series(1, 100) g")
        status = wait_until(
            lambda: (found := operator.asks("status"))["paused"] and found, what="the pause", timeout=30
        )
        assert status["paused"]["max_queue"] == 10
        assert status["paused"]["longest_queue"] > 10
        (alarm,) = status["alarms"]
        assert f"paused since {status['paused']['since']}" in alarm
        shown = operator.types("status")
        assert alarm in shown.stdout
        assert shown.returncode == 3
        wait_until(
            lambda: pages.ready == (503, "not ready, leader: queue_full\n"), what="/readyz", timeout=30
        )
        assert pages.number("cdc_paused", reason="full_queue") == 1
        assert pages.get("/livez")[0] == 200
        taken = 0
        while taken < 100:
            taken += len(broker.client.rpop("celery", 100) or ())
        wait_until(lambda: operator.asks("status")["paused"] is None, what="the end of the pause")


def test_an_interrupt_ends_it_too_and_json_logs_are_json(operator: Operator, database: Database) -> None:
    with operator.running("run", "--json-logs", "--log-level", "debug") as listener:
        assert listener.stderr is not None
        lines = []
        for line in listener.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "streaming":
                listener.send_signal(signal.SIGINT)
        assert listener.wait(timeout=at_most(10)) == 0
    assert [each["event"] for each in lines if each["event"] in {"starting", "stopped"}] == [
        "starting",
        "stopped",
    ]
    assert {"timestamp", "level"} <= lines[0].keys()
    assert "postgresql://" not in json.dumps(lines)


def test_problems_are_shown_with_what_to_paste_and_fail_the_command(
    operator: Operator, database: Database
) -> None:
    database.execute("ALTER TABLE roles DROP CONSTRAINT roles_pkey; ALTER TABLE roles DROP COLUMN name")
    done = operator.types(
        "check", CDC_PLUGIN="wal2json", CELERY_BROKER_URL="redis://user:broker-secret@127.0.0.1:1/0"
    )
    assert done.returncode == 1
    assert "\n  ALTER TABLE public.roles REPLICA IDENTITY FULL;\n" in done.stdout
    assert "public.roles has no column name" in done.stdout
    assert "Start it, or correct CELERY_BROKER_URL." in done.stdout
    assert "secret" not in done.stdout + done.stderr
    ran = operator.types("run")
    assert ran.returncode == 1
    assert "ALTER TABLE public.roles REPLICA IDENTITY FULL;" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_broker_that_can_lose_tasks_is_warned_of(operator: Operator) -> None:
    with ValkeyServer(arguments=["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]) as careless:
        url = {"CELERY_BROKER_URL": careless.url}
        findings = {each["what"]: each for each in operator.asks("check", **url)["findings"]}
        assert findings["broker's disk"]["state"] == findings["broker's memory"]["state"] == "warning"
        assert "CONFIG SET appendonly yes" in findings["broker's disk"]["hint"]
        assert "CONFIG SET maxmemory-policy noeviction" in findings["broker's memory"]["hint"]
        for durability, what in (("fsync", "broker's disk"), ("replicated", "CDC_DURABILITY=replicated")):
            checked = operator.asks("check", CDC_DURABILITY=durability, **url)
            assert [each["what"] for each in checked["findings"] if each["state"] == "problem"] == [what]
    with ValkeyServer(append_only=True) as careful:
        checked = operator.asks("check", CDC_DURABILITY="fsync", CELERY_BROKER_URL=careful.url)
        assert checked["ready"], checked


def test_celery_settings_without_what_the_guarantees_need_are_warned_of(operator: Operator) -> None:
    found = operator.asks("check", CELERY_CONFIG_MODULE="tests.support.celery_settings.plain_kombu")[
        "findings"
    ]
    (told,) = [each for each in found if each["what"] == "celery settings"]
    assert told["state"] == "warning"
    assert "the transport is tests.support.celery_settings.plain_kombu" in told["found"]
    assert "celery settings" not in {each["what"] for each in operator.asks("check")["findings"]}


def test_of_several_brokers_the_one_that_is_away_is_named(operator: Operator, broker: Broker) -> None:
    both = f"redis://:secret@127.0.0.1:1/0;{broker.url}"
    found = [
        each
        for each in operator.asks("check", CELERY_BROKER_URL=both)["findings"]
        if each["what"] == "broker"
    ]
    assert [each["state"] for each in found] == ["warning", "ok"]
    assert "127.0.0.1:1/0 does not answer" in found[0]["found"]
    assert str(broker.server.port) in found[1]["found"]
    assert "secret" not in repr(found)


def test_a_cache_that_is_away_and_a_queue_that_is_not_there_are_problems(operator: Operator) -> None:
    checked = operator.asks("check", CACHE_URL="redis://127.0.0.1:1/0", CDC_ROUTES=f"{ROUTES}:to_no_queue")
    problems = {each["what"]: each for each in checked["findings"] if each["state"] == "problem"}
    assert problems.keys() == {"cache", "route to tests.many"}
    assert "balk" in problems["route to tests.many"]["found"]


def test_what_a_route_could_not_take_is_listed_shown_replayed_and_dropped(
    operator: Operator, database: Database, broker: Broker
) -> None:
    operator.environment["CDC_ROUTES"] = f"{ROUTES}:failing"
    with operator.running():
        wait_for_listener(database, timeout=30)
        database.execute("INSERT INTO roles VALUES (1, NULL), (2, 'named')")
        wait_until(lambda: broker.client.llen("celery") == 1, what="the task that works")
        parked = operator.asks("parked", "list")
    assert [(each["task"], each["change"]["after"]["id"]) for each in parked] == [
        ("tests.named", 1),
        ("tests.wrong", 1),
        ("tests.wrong", 2),
    ]
    assert operator.asks("status")["parked"] == 3
    assert "3 changes are parked" in operator.types("status").stdout
    first, *_, last = (each["id"] for each in parked)
    listed = operator.types("parked", "list", "--task", "tests.wrong").stdout
    assert last in listed
    assert first not in listed
    shown = json.loads(operator.types("parked", "show", first).stdout)
    assert shown["error"].startswith("TypeError")
    assert shown["change"]["after"] == {"id": 1, "name": None}

    again = operator.types("parked", "replay", "--all")
    assert again.returncode == 1
    assert again.stderr.count("stays parked") == 3
    fixed = {"CDC_ROUTES": f"{ROUTES}:fixed"}
    replayed = operator.types("parked", "replay", first, **fixed)
    assert (replayed.returncode, replayed.stdout) == (0, f"{first}: sent to tests.named\n")
    task = tasks_in(broker, "celery")[-1]
    assert task["headers"]["id"] == first
    assert "roles insert" in task["headers"]["argsrepr"]
    assert operator.types("parked", "replay", first).returncode == 1

    assert operator.types("parked", "drop").returncode == 2
    assert operator.types("parked", "drop", "--all").stdout.count("dropped") == 2
    assert operator.asks("parked", "list") == []
