"""The rows that are there come as reads, each in its place among the changes of a stream that goes on."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING, Any, Self

import psycopg2
import pymysql
import pytest
import redis

from cdc_tasks.changes import position_key
from harness.embedded_servers import ValkeyServer
from harness.mysql_servers import MariaDBServer
from harness.waiting import at_most, wait_until
from tests.conftest import Broker, fresh_mysql_database
from tests.support.operators import Operator
from tests.support.publishing import messages
from tests.support.rabbitmq import drain

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable
    from pathlib import Path

    from harness.machine_servers import RabbitMQServer
    from tests.conftest import Database
    from tests.support.mysql.source import MySQLDatabase

_ROUTES = """
from listener.router import BinlogRouter, EventType

def setup(schema="public"):
    router = BinlogRouter()
    for table in ("numbered", "paired", "named"):
        router.register(schema, table, [EventType.ALL, EventType.READ], "tests.mirror", queue="PREFIX_mirror")
    router.register(schema, "numbered", EventType.INSERT, "tests.other", queue="PREFIX_other", args=["id"])
    router.register(schema, "keyless", EventType.INSERT, "tests.other", queue="PREFIX_other", args=["v"])
    return router
"""
_TABLES = """
CREATE TABLE numbered (id bigint PRIMARY KEY, v bigint, note text);
CREATE TABLE paired (a text, b int, v bigint, note text, PRIMARY KEY (b, a));
CREATE TABLE named (name text NOT NULL UNIQUE, v bigint, note text);
ALTER TABLE named REPLICA IDENTITY USING INDEX named_name_key;
CREATE TABLE keyless (v bigint);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE SEQUENCE versions
"""
# Values that each format has to escape in its own way.
_NOTE = "repeat(chr(9) || chr(10) || '\\N \\\\ \"x\" é日 ', g %% 3)"


_Rows = dict[tuple[Any, ...], tuple[Any, ...]]  # version and note by the key


class Person(Operator):
    """An operator with tables, routes and a broker."""

    schema = "public"

    def __init__(self, database: Any, broker: Broker, directory: Path, **more: str) -> None:
        """`more` are variables of the environment."""
        self.create_tables(database)
        super().__init__(
            DATABASE_URL=database.url,
            CELERY_BROKER_URL=broker.url,
            CDC_QUEUE_PREFIX=f"{database.name}_",
            CACHE_URL=broker.cache_url,
            CDC_NAME=database.name,
            CDC_ROUTES="routes_of_mine:setup",
            PYTHONPATH=str(directory),
            CELERY_CONFIG_MODULE="tests.support.celery_settings.any_queue",
        )
        self.environment.update(more)
        self.database, self.broker = database, broker
        self._drained = 0
        routes = _ROUTES.replace("PREFIX", database.name)
        (directory / "routes_of_mine.py").write_text(routes)

    def create_tables(self, database: Any) -> None:
        database.execute(_TABLES)

    def connect(self) -> Any:
        return psycopg2.connect(self.database.url)

    @property
    def statements(self) -> list[str]:
        """What others do with the rows; `g` is the number of a row, `new` one that there is not."""
        return _STATEMENTS

    def fills(self, rows: int) -> None:
        """Put rows into all tables, before anyone listens."""
        note = _NOTE.replace("%%", "%")
        for table, key in (
            ("numbered", "g"),
            ("paired", "chr(97 + g % 5) || '''' || g, g % 7"),
            ("named", "'n ' || g"),
        ):
            names = {"numbered": "id", "paired": "a, b", "named": "name"}[table]
            self.database.execute(
                f"INSERT INTO {table} ({names}, v, note) SELECT {key}, nextval('versions'), "
                f"CASE WHEN g % 4 > 0 THEN {note} END FROM generate_series(1, {rows}) g"
            )

    def sees(self, process: subprocess.Popen[str]) -> None:
        """Return when the listener reads; fail if it has ended."""
        query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND confirmed_flush_lsn IS NOT NULL"
        name = self.database.name
        wait_until(
            lambda: process.poll() is not None or self.database.fetch(query, name),
            what="the listener",
            timeout=60,
        )
        assert process.poll() is None, process.communicate()[1]

    def sent(self) -> list[dict[str, Any]]:
        """Return the changes and reads that the mirror's tasks have, in the order of their queue."""
        found = messages(self.broker.client, f"{self.database.name}_mirror")
        return [each["body"][0][0] for each in found]

    def backfills(self) -> dict[str, dict[str, Any]]:
        return {each["table"]: each for each in self.asks("backfills")}

    def waits_for(self, *tables: str) -> None:
        """Return when the last backfills of these tables are done."""

        def done() -> bool:
            found = self.backfills()
            assert not any(found[f"{self.schema}.{table}"]["error"] for table in tables), found
            return all(found[f"{self.schema}.{table}"]["state"] == "done" for table in tables)

        wait_until(done, what="the backfills", timeout=120)

    def drains(self) -> None:
        """Return when all that was committed is in the queue."""
        self._drained += 1
        number = -self._drained
        self.database.execute(f"INSERT INTO numbered VALUES ({number}, 0, 'the last')")

        def came() -> bool:
            return any(each["after"] and each["after"].get("id") == number for each in self.sent())

        wait_until(came, what="the last row", timeout=60)

    def names(self) -> list[str]:
        return [name for (name,) in self.database.fetch("SELECT name FROM named ORDER BY name")]

    def rows(self, table: str) -> _Rows:
        """Return the rows that are there."""
        key = _KEYS[table]
        return {
            row[:-2]: row[-2:]
            for row in self.database.fetch(f"SELECT {', '.join(key)}, v, note FROM {table}")
        }


class BinlogPerson(Person):
    """The same with MySQL or MariaDB, without `paired`."""

    def create_tables(self, database: MySQLDatabase) -> None:
        self.schema = database.name
        columns = "v bigint, note text"
        database.execute(
            f"CREATE TABLE numbered (id bigint PRIMARY KEY, {columns}) CHARACTER SET utf8mb4",
            f"CREATE TABLE named (name varchar(50) NOT NULL UNIQUE, {columns}) CHARACTER SET utf8mb4",
            "CREATE TABLE paired (a varchar(9), b int, PRIMARY KEY (a, b))",
            "CREATE TABLE keyless (v bigint)",
        )

    def connect(self) -> Any:
        return self.database.connect(autocommit=False)

    @property
    def statements(self) -> list[str]:
        return _BINLOG_STATEMENTS

    def fills(self, rows: int) -> None:
        note = "'x \\\\ \"y\" \té日'"
        numbered = ", ".join(f"({g}, UUID_SHORT(), {note})" for g in range(1, rows + 1))
        named = ", ".join(f"('n {g}', UUID_SHORT(), NULL)" for g in range(1, rows + 1))
        self.database.execute(f"INSERT INTO numbered VALUES {numbered}", f"INSERT INTO named VALUES {named}")

    def sees(self, process: subprocess.Popen[str]) -> None:
        def reads() -> bool:
            commands = [str(row[4]) for row in self.database.fetch("SHOW PROCESSLIST")]
            return process.poll() is not None or any(each.startswith("Binlog Dump") for each in commands)

        wait_until(reads, what="the listener", timeout=60)
        assert process.poll() is None, process.communicate()[1]


_KEYS = {"numbered": ("id",), "paired": ("b", "a"), "named": ("name",)}


def _with_row(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "row": message["after"] or message["before"] or {}}


@pytest.fixture(params=["pgoutput", "wal2json"])
def plugin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def person(plugin: str, request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Person:
    """Someone whose server has the plugin."""
    database = request.getfixturevalue("database" if plugin == "pgoutput" else "debian_database")
    return Person(database, broker, tmp_path, CDC_PLUGIN=plugin)


def _ends(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=at_most(60))
    assert process.returncode == 0, log
    return log


class _Writers:
    """Somebody who changes rows of all tables, until the end of the block."""

    def __init__(self, person: Person, rows: int) -> None:
        self._person, self._rows = person, rows
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed,)) for seed in (1, 2)]
        self.count = 0

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def _write(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.wait(0.01):
            with suppress(pymysql.Error):  # a deadlock, or the server is down
                self._write_on(chance)

    def _write_on(self, chance: random.Random) -> None:
        statements = self._person.statements
        with closing(self._person.connect()) as connection, connection.cursor() as cursor:
            while not self._stop.wait(0.002):
                number = chance.randrange(1, self._rows)
                cursor.execute(
                    chance.choice(statements), {"g": number, "new": chance.randrange(10**6, 10**9)}
                )
                chance.choices([connection.commit, connection.rollback], [9, 1])[0]()
                self.count += 1


# Each version that UUID_SHORT() gives is greater than those before it.
_BINLOG_STATEMENTS = [
    "UPDATE numbered SET v = UUID_SHORT() WHERE id = %(g)s",
    "UPDATE numbered SET v = UUID_SHORT() WHERE id BETWEEN %(g)s AND %(g)s + 20",
    "DELETE FROM numbered WHERE id = %(g)s",
    ("INSERT INTO numbered (id, v) VALUES (%(g)s, UUID_SHORT()) ON DUPLICATE KEY UPDATE v = UUID_SHORT()"),
    "INSERT IGNORE INTO numbered (id, v) VALUES (%(new)s, UUID_SHORT())",
    "UPDATE IGNORE numbered SET id = %(new)s, v = UUID_SHORT() WHERE id = %(g)s",
    "UPDATE named SET v = UUID_SHORT() WHERE name = CONCAT('N ', %(g)s)",
    "DELETE FROM named WHERE name = CONCAT('n ', %(g)s)",
]
_STATEMENTS = [
    "UPDATE numbered SET v = nextval('versions') WHERE id = %(g)s",
    "UPDATE numbered SET v = nextval('versions') WHERE id BETWEEN %(g)s AND %(g)s + 20",
    "DELETE FROM numbered WHERE id = %(g)s",
    "INSERT INTO numbered VALUES (%(g)s, nextval('versions')) ON CONFLICT (id) DO UPDATE SET v = nextval('versions')",
    "INSERT INTO numbered VALUES (%(new)s, nextval('versions')) ON CONFLICT DO NOTHING",
    (
        "UPDATE numbered SET id = %(new)s, v = nextval('versions') WHERE id = %(g)s"
        " AND NOT EXISTS (SELECT FROM numbered WHERE id = %(new)s)"
    ),
    "UPDATE paired SET v = nextval('versions') WHERE b = %(g)s %% 7 AND a < 'b'",
    "UPDATE paired SET b = b + 100, v = nextval('versions') WHERE a LIKE '%%' || %(g)s",
    "DELETE FROM paired WHERE a LIKE '%%' || %(g)s AND b < 7",
    "UPDATE named SET v = nextval('versions') WHERE name = 'n ' || %(g)s",
    "DELETE FROM named WHERE name = 'n ' || %(g)s",
]


def check_order(sent: list[dict[str, Any]]) -> None:
    """Assert that no row goes backwards: neither its position, nor its version."""
    position: dict[Any, str] = {}
    version: dict[Any, int] = {}
    for each in map(_with_row, sent):
        key = each["table"], *(each["row"][name] for name in _KEYS[each["table"]])
        place = position_key(each["position"])[1]
        assert place > position.get(key, ""), each
        position[key] = place
        if each["after"] is not None:
            assert each["after"]["v"] >= version.get(key, -1), each
            version[key] = each["after"]["v"]


def last_state(sent: list[dict[str, Any]], table: str) -> _Rows:
    """Return the rows, as somebody has them who applied all that was sent."""
    found: _Rows = {}
    for each in sent:
        if each["table"] != table:
            continue
        for row in (each["before"], each["after"]):
            if row is not None and all(name in row for name in _KEYS[table]):
                found.pop(tuple(row[name] for name in _KEYS[table]), None)
        if each["after"] is not None:
            found[tuple(each["after"][name] for name in _KEYS[table])] = (
                each["after"]["v"],
                each["after"]["note"],
            )
    return found


def check_sent(
    person: Person, *, tables: Iterable[str] = ("numbered", "paired", "named")
) -> list[dict[str, Any]]:
    """Assert that each row that is there was sent, by a read or a change, and that its last state came last."""
    sent = person.sent()
    check_order(sent)
    assert [number for number in Counter(each["id"] for each in sent).values() if number > 1] == []
    for table in tables:
        assert last_state(sent, table) == person.rows(table), table
    return sent


def test_each_row_comes_once_while_others_write(person: Person) -> None:
    rows = 1500
    person.fills(rows)
    with person.running() as process:
        with _Writers(person, rows) as writers:
            person.sees(process)
            for table in _KEYS:
                answer = person.asks("backfill", table, "--chunk", "40")
                assert answer["done"], answer
            person.waits_for(*_KEYS)
            assert writers.count > 100
        person.drains()
        _ends(process)
    sent = check_sent(person)
    reads = [each for each in sent if each["event"] == "read"]
    per_row = Counter((each["table"], json.dumps(each["after"], sort_keys=True)) for each in reads)
    assert max(per_row.values()) == 1
    assert all(each["before"] is None and each["unavailable"] == [] for each in reads)
    found = person.backfills()
    assert sum(each["sent"] for each in found.values()) == len(reads)
    assert len(reads) > rows


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_each_row_comes_once_although_listener_broker_and_database_are_killed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The long form is `make chaos`. Only MariaDB is killed: another one starts within a second."""
    rows = 4000
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer(append_only=True))
        client = stack.enter_context(closing(redis.Redis.from_url(server.url)))
        client.config_set("appendfsync", "always")
        broker = Broker(server=server, client=client, cache=client)
        mariadb = stack.enter_context(MariaDBServer()) if kind == "mariadb" else None
        person: Person
        if mariadb is not None:
            database = stack.enter_context(fresh_mysql_database(mariadb))
            person = BinlogPerson(database, broker, tmp_path)
        else:
            person = Person(request.getfixturevalue("database"), broker, tmp_path)
        person.fills(rows)
        kills = random.Random(14)
        with person.running() as first:
            person.sees(first)
            assert person.asks("backfill", "numbered", "--chunk", "25", "--rate", "3000")["done"]
            assert person.asks("backfill", "named", "--chunk", "100")["done"]
            first.kill()
        with _Writers(person, rows):
            for number in range(3):
                with person.running() as process:
                    sent = len(person.sent())
                    wait_until(lambda: len(person.sent()) > sent + 100, what="more tasks", timeout=60)  # noqa: B023 - called here
                    if number == 1:
                        server.kill()
                        server.restart()
                    if number == 2 and mariadb is not None:
                        mariadb.kill()
                        mariadb.restart()
                    time.sleep(kills.random() / 5)
                    process.kill()
        with person.running() as process:
            person.waits_for("numbered", "named")
            person.drains()
            _ends(process)
        sent_all = check_sent(person, tables=("numbered", "named"))
        reads = Counter(
            each["after"]["id"]
            for each in sent_all
            if each["event"] == "read" and each["table"] == "numbered"
        )
        assert set(reads.values()) == {1}
        assert len(reads) > rows / 2


def test_a_backfill_of_a_binlog_is_planned_and_done(
    mariadb_database: MySQLDatabase, broker: Broker, tmp_path: Path
) -> None:
    person = BinlogPerson(mariadb_database, broker, tmp_path)
    person.fills(300)
    plan = person.asks("backfill", "numbered", "--where", "id > 200", "--dry-run")
    assert (plan["rows"], plan["key"]) == (100, ["id"])
    refused = person.types("backfill", "numbered", "--where", "no_column > 1")
    assert refused.returncode == 1
    assert "does not accept the condition" in " ".join(refused.stderr.split())
    with person.running("run", "--backfill") as process:
        person.sees(process)
        wait_until(lambda: len(person.sent()) >= 600, what="the reads", timeout=60)
        person.waits_for("numbered", "named")
        _ends(process)
    sent = check_sent(person, tables=("numbered", "named"))
    assert {each["event"] for each in sent} == {"read"}
    assert [each["after"]["name"] for each in sent if each["table"] == "named"] == person.names()


@pytest.mark.parametrize("plugin", ["pgoutput"])  # what a person does is the same with both
def test_a_person_follows_and_directs_backfills(person: Person) -> None:
    person.fills(600)
    with person.running() as process:
        person.sees(process)
        plan = person.asks("backfill", "paired", "--where", "b < 3", "--dry-run")
        ((count,),) = person.database.fetch("SELECT count(*) FROM paired WHERE b < 3")
        assert (plan["rows"], plan["key"], plan["tasks"]) == (count, ["b", "a"], ["tests.mirror"])
        assert person.sent() == []
        watched = person.types("backfill", "paired", "--where", "b < 3", "--watch")
        assert watched.returncode == 0, watched.stderr
        assert f"done: {count} sent" in watched.stdout
        assert {each["after"]["b"] for each in person.sent()} == {0, 1, 2}

        slow = person.asks("backfill", "numbered", "--rate", "3")["id"]  # it is not to end by itself
        wait_until(lambda: person.backfills()["public.numbered"]["sent"], what="the first rows", timeout=30)
        waiting = person.asks("backfill", "named", "--task", "tests.mirror")["id"]
        assert person.backfills()["public.named"]["state"] == "waiting"
        assert person.asks("backfills", "pause", slow)["done"]
        person.waits_for("named")
        assert person.asks("backfills", "resume", slow[:6])["done"]
        _ends(process)
    with person.running() as process:
        before = person.asks("backfills", "show", slow)
        assert (before["state"], before["rate"]) == ("running", 3.0)
        person.sees(process)
        wait_until(
            lambda: person.asks("backfills", "show", slow)["sent"] > before["sent"], what="more", timeout=30
        )
        assert person.asks("backfills", "cancel", slow)["done"]
        sent = person.asks("backfills", "show", slow)
        assert sent["state"] == "cancelled"
        refused = person.asks("backfills", "resume", waiting)
        assert (refused["done"], refused["code"]) == (False, "backfill_over")
        assert "numbered" in person.types("backfills").stdout
        _ends(process)
    ids = [each["after"]["id"] for each in person.sent() if each["table"] == "numbered"]
    assert ids == list(range(1, sent["sent"] + 1))
    assert [each["command"] for each in person.asks("commands")["record"]].count("backfill") == 3


def test_what_cannot_be_done_is_refused_with_the_reason_and_the_cure(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path)
    role = f"reader_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'secret'")
    database.execute("CREATE TABLE partitioned (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE part PARTITION OF partitioned FOR VALUES FROM (0) TO (10)")
    database.execute("CREATE TABLE nullable (id int UNIQUE); CREATE VIEW a_view AS SELECT 1")
    for arguments, code, cure in (
        (["no_such"], "no table public.no_such", "python -m listener routes"),
        (["a_view"], "no table public.a_view", ""),
        (["keyless"], "has no primary key", "ALTER TABLE public.keyless ADD PRIMARY KEY"),
        (["nullable"], "has no primary key", "NOT NULL"),
        (["partitioned"], "No route watches the table public.partitioned", ""),
        (["numbered", "--where", "id > 1; DROP TABLE numbered"], "is not a condition", "without ;"),
        (["numbered", "--where", "no_column > 1"], "does not accept the condition", "after WHERE"),
        (
            ["numbered", "--task", "tests.mirrror"],
            "has the task or the id tests.mirrror",
            "--task tests.mirror",
        ),
    ):
        done = person.types("backfill", *arguments)
        assert done.returncode == 1, arguments
        assert code in " ".join(done.stderr.split()), done.stderr
        assert cure in " ".join(done.stderr.split()), done.stderr
    database.execute(f"ALTER ROLE {role} NOSUPERUSER")
    url = database.url.replace("postgres@", f"{role}:secret@", 1)
    assert url != database.url
    done = person.types("backfill", "numbered", DATABASE_URL=url)
    assert done.returncode == 1
    assert f"GRANT SELECT ON public.numbered TO {role};" in done.stderr
    findings = person.asks("check", DATABASE_URL=url)["findings"]
    assert {each["what"] for each in findings if each["code"] == "backfill_no_right"} == {
        f"table public.{table}" for table in _KEYS
    }
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_backfill_that_fails_leaves_the_stream_alone_and_goes_on_when_told_to(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path)
    person.fills(50)
    database.execute("INSERT INTO numbered VALUES (0, 0)")
    with person.running() as process:
        person.sees(process)
        failing = person.asks("backfill", "numbered", "--where", "1 / id > -1", "--chunk", "10")["id"]
        wait_until(
            lambda: person.asks("backfills", "show", failing)["state"] == "failed",
            what="the failure",
            timeout=30,
        )
        shown = person.asks("backfills", "show", failing)
        assert "DivisionByZero" in shown["error"]
        assert shown["code"] == "backfill_where"
        person.drains()
        database.execute("DELETE FROM numbered WHERE id = 0")
        assert person.asks("backfills", "resume", failing)["done"]
        person.waits_for("numbered")
        log = _ends(process)
    assert "backfill_failed" in log
    assert {each["after"]["id"] for each in person.sent() if each["event"] == "read"} >= set(range(2, 51))


def test_a_backfill_waits_for_room_and_for_open_transactions_and_the_stream_does_not(
    database: Database, broker: Broker, tmp_path: Path
) -> None:
    person = Person(database, broker, tmp_path, CDC_MAX_QUEUE="1000")
    person.fills(2000)
    queue = f"{database.name}_mirror"
    with person.running() as process, closing(psycopg2.connect(database.url)) as writer:
        person.sees(process)
        with writer.cursor() as cursor:
            cursor.execute("UPDATE numbered SET v = 100000 WHERE id = 7")  # and does not commit
        assert person.asks("backfill", "numbered", "--chunk", "100")["done"]
        person.drains()
        assert not [each for each in person.sent() if each["event"] == "read"]
        writer.commit()
        wait_until(lambda: broker.client.llen(queue) >= 500, what="half of the queue", timeout=60)
        person.drains()
        person.drains()
        assert person.backfills()["public.numbered"]["state"] == "running"
        assert broker.client.llen(queue) < 700
        seven = [each for each in person.sent() if (each["after"] or {}).get("id") == 7]
        assert [each["after"]["v"] for each in seven] == [100000] * len(seven)
        assert seven
        taken = len(person.sent())
        while person.backfills()["public.numbered"]["state"] != "done":
            taken += len(broker.client.lpop(queue, 200) or ())
        assert broker.client.get(f"cdc:{database.name}:paused") is None
        assert "paused" not in _ends(process)
    assert taken >= 2000


def test_reads_of_a_chunk_have_the_same_ids_on_rabbitmq(
    database: Database, broker: Broker, tmp_path: Path, rabbitmq_server: RabbitMQServer
) -> None:
    person = Person(database, broker, tmp_path, CELERY_BROKER_URL=rabbitmq_server.url)
    person.fills(300)
    with person.running() as process:
        person.sees(process)
        assert person.asks("backfill", "named", "--chunk", "70")["done"]
        person.waits_for("named")
        _ends(process)
    found = [each["body"][0][0] for each in drain(rabbitmq_server, f"{database.name}_mirror")]
    assert [each["after"]["name"] for each in found] == sorted(person.names())
    assert len({each["id"] for each in found}) == 300
