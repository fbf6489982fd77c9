"""The master cache equals the tables, for every reader at any time."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cdc_tasks import db, master_cache
from cdc_tasks.master_cache import TABLE_TO_CACHE_KEYS, CacheKey, MasterCache
from cdc_tasks.routing.router import BinlogRouter
from cdc_tasks.testing import assert_fires, row_change
from harness.waiting import at_most, wait_until
from listener.routes import setup_router

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.worker import Worker
    from tests.support.helpdesk import HelpDesk


def test_a_refresh_puts_the_rows_of_the_table_in_the_order_of_their_ids(in_process: HelpDesk) -> None:
    in_process.database.execute("INSERT INTO roles (id, name) VALUES (2, 'Agent'), (1, 'Admin')")

    master_cache.refresh("roles")

    assert _cached(in_process, "master:roles") == [
        {"id": 1, "name": "Admin", "description": None},
        {"id": 2, "name": "Agent", "description": None},
    ]


def test_one_table_feeds_several_keys(in_process: HelpDesk) -> None:
    master_cache.refresh("statuses")

    assert [row["name"] for row in _cached(in_process, "master:statuses")] == [
        "open",
        "in progress",
        "closed",
    ]
    assert [row["name"] for row in _cached(in_process, "master:statuses:open")] == ["open", "in progress"]


def test_a_table_without_rows_is_an_empty_list(in_process: HelpDesk) -> None:
    master_cache.refresh("departments")
    assert _cached(in_process, "master:departments") == []
    assert master_cache.get("departments") == []


def test_a_reader_gets_the_rows_also_if_redis_lacks_the_key(in_process: HelpDesk) -> None:
    in_process.database.execute("INSERT INTO roles (name) VALUES ('Admin')")

    assert [row["name"] for row in master_cache.get("roles")] == ["Admin"]
    assert [row["name"] for row in master_cache.get("statuses:open")] == ["open", "in progress"]
    in_process.broker.cache.flushall()
    assert [row["name"] for row in master_cache.get("roles")] == ["Admin"]


def test_keys_do_not_expire_and_nothing_else_is_left_behind(in_process: HelpDesk) -> None:
    master_cache.refresh("statuses")
    master_cache.refresh("statuses")

    cache = in_process.broker.cache
    assert {key.decode() for key in cache.scan_iter()} == {
        "master:statuses",
        "master:statuses:open",
        "cdc:master-cache:statuses:begun",
        "cdc:master-cache:statuses:last",
        "cdc:master-cache:statuses:written",
    }
    assert {cache.ttl(key) for key in cache.scan_iter()} == {-1}


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(in_process: HelpDesk) -> None:
    with pytest.raises(master_cache.UnknownTableError, match="roles, statuses"):
        master_cache.refresh("rolls")
    with pytest.raises(master_cache.UnknownTableError, match="master:roles"):
        master_cache.get("rolls")
    with pytest.raises(master_cache.UnknownTableError, match=r"args=lambda change: \[change.table\]"):
        master_cache.refresh({"table": "roles", "after": {"name": "private"}})  # type: ignore[arg-type]


@pytest.fixture
def slow_first_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The first refresh stops after reading its rows and before writing them, until an event is set."""
    has_read, go_on = threading.Event(), threading.Event()
    replace = master_cache._replace

    def replace_later(*arguments: Any) -> str:
        if not has_read.is_set():
            has_read.set()
            assert go_on.wait(at_most(20))
        return replace(*arguments)

    monkeypatch.setattr(master_cache, "_replace", replace_later)
    yield has_read, go_on
    go_on.set()


def test_an_older_read_that_ends_last_does_not_overwrite_a_newer_one(
    in_process: HelpDesk, slow_first_read: tuple[threading.Event, threading.Event]
) -> None:
    has_read, go_on = slow_first_read
    in_process.database.execute("INSERT INTO roles (name) VALUES ('Admin')")
    outcomes: list[str] = []
    older = threading.Thread(target=lambda: outcomes.append(master_cache.refresh("roles")))
    older.start()
    assert has_read.wait(at_most(20))
    in_process.database.execute("UPDATE roles SET name = 'Super Admin'")
    assert master_cache.refresh("roles") == "written: 1 row of roles"

    go_on.set()
    older.join()

    assert outcomes == ["superseded: 1 row of roles"]
    assert [row["name"] for row in master_cache.get("roles")] == ["Super Admin"]


def test_a_read_that_began_earlier_but_may_be_newer_is_done_again(
    in_process: HelpDesk,
    slow_first_read: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The refresh that began first reads first and writes last; the rows of the second must not be lost."""
    has_read, go_on = slow_first_read
    in_process.database.execute("INSERT INTO roles (name) VALUES ('Admin')")
    early = threading.Thread(target=master_cache.refresh, args=["roles"])
    early.start()
    assert has_read.wait(at_most(20))
    late = master_cache._begin("roles")  # begins while the early one is not done
    go_on.set()
    early.join()  # and the early one writes meanwhile
    in_process.database.execute("UPDATE roles SET name = 'Super Admin'")
    keys = TABLE_TO_CACHE_KEYS["roles"]
    master_cache._read("roles", keys, late)

    assert master_cache._replace("roles", keys, late, {}) == "again"
    master_cache.refresh("roles")
    assert [row["name"] for row in master_cache.get("roles")] == ["Super Admin"]


def test_a_refresh_writes_its_rows_also_if_redis_lost_its_data_meanwhile(
    in_process: HelpDesk, slow_first_read: tuple[threading.Event, threading.Event]
) -> None:
    has_read, go_on = slow_first_read
    refreshing = threading.Thread(target=master_cache.refresh, args=["statuses"])
    refreshing.start()
    assert has_read.wait(at_most(20))
    in_process.broker.cache.flushall()
    go_on.set()
    refreshing.join()

    assert len(_cached(in_process, "master:statuses")) == 3


def test_many_refreshes_at_once_never_take_a_reader_back_and_end_with_the_newest(
    in_process: HelpDesk,
) -> None:
    in_process.database.execute("INSERT INTO roles (id, name, description) VALUES (1, 'counter', '0')")
    master_cache.refresh("roles")
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            [row] = json.loads(
                in_process.broker.cache.get("master:roles") or b"[]"
            )  # an empty key fails here
            seen.append(int(row["description"]))

    def change_and_refresh() -> None:
        for _ in range(25):
            with db.engine().begin() as connection:
                connection.exec_driver_sql("UPDATE roles SET description = description::int + 1")
            master_cache.refresh("roles")

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=change_and_refresh) for _ in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()

    assert seen == sorted(seen)
    assert master_cache.get("roles")[0]["description"] == "100"


def test_a_hundred_thousand_rows_are_cached_and_readers_never_see_a_part_of_them(
    in_process: HelpDesk,
) -> None:
    in_process.database.execute(
        "INSERT INTO roles (name, description)"
        " SELECT 'Role ' || n, repeat('x', 50) FROM generate_series(1, 100000) n"
    )
    master_cache.refresh("roles")
    in_process.database.execute("INSERT INTO roles (name) VALUES ('One more')")
    lengths: set[int] = set()
    refreshing = threading.Thread(target=master_cache.refresh, args=["roles"])
    refreshing.start()
    while refreshing.is_alive():
        lengths.add(in_process.broker.cache.strlen("master:roles"))
    refreshing.join()

    rows = master_cache.get("roles")
    assert len(rows) == 100001
    assert rows[-1]["name"] == "One more"
    assert len(lengths) <= 2
    assert 0 not in lengths


def test_values_are_cached_in_the_format_of_changes(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLE_TO_CACHE_KEYS, "kinds", [CacheKey("master:kinds")])
    in_process.database.execute(
        """
        CREATE TABLE kinds (id int, price numeric, day date, moment timestamptz, raw bytea,
                            data jsonb, tags text[], token uuid);
        INSERT INTO kinds VALUES (1, 12.30, '2026-11-22', '2026-11-22 12:00:00.5+02', '\\x0102',
                                  '{"big": 123456789012345678901234567890}', '{a,NULL}',
                                  'b9a1f9a5-58d3-4a7a-8a0c-0b2a6b0f6f4e')
        """
    )
    assert master_cache.get("kinds") == [
        {
            "id": 1,
            "price": "12.30",
            "day": "2026-11-22",
            "moment": "2026-11-22T10:00:00.500000+00:00",
            "raw": "AQI=",
            "data": {"big": 123456789012345678901234567890},
            "tags": ["a", None],
            "token": "b9a1f9a5-58d3-4a7a-8a0c-0b2a6b0f6f4e",
        }
    ]


def test_a_table_of_ones_own_is_registered_with_a_condition_and_an_order(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_cache, "TABLE_TO_CACHE_KEYS", {})
    in_process.database.execute(
        """
        CREATE SCHEMA shop;
        CREATE TABLE shop."odd ""table" ("Pos" int, name text, ends time);
        INSERT INTO shop."odd ""table" VALUES (2, 'a%', '12:30'), (2, 'b', '10:00'), (3, 'c', NULL);
        """
    )
    MasterCache.register('shop.odd "table', key="offers", order_by=["-Pos", "name"])
    early, percent = "ends::text = '12:30:00' OR Pos > 9", "name LIKE '%\\%'"
    MasterCache.register(
        'shop.odd "table', where=early.replace("Pos", '"Pos"'), order_by=("-Pos", "name"), key="master:early"
    )
    MasterCache.register('shop.odd "table', where=percent, order_by=("-Pos", "name"), key="percent")
    assert master_cache.refresh('shop.odd "table') == 'written: 3 rows of shop.odd "table'
    assert [row["name"] for row in master_cache.get("offers")] == ["c", "a%", "b"]
    assert master_cache.get("early") == [{"Pos": 2, "name": "a%", "ends": "12:30:00"}]
    assert [row["name"] for row in master_cache.get("percent")] == ["a%"]


def test_only_the_rows_that_a_key_wants_are_read(
    in_process: HelpDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_cache, "TABLE_TO_CACHE_KEYS", {})
    MasterCache.register("statuses", where="NOT is_closed")
    assert master_cache.refresh("statuses") == "written: 2 rows of statuses"


@pytest.mark.parametrize(
    ("table", "options", "words"),
    [
        (" ", {}, "table=' '"),
        (7, {}, "7 is not a table"),
        ("roles", {"order_by": []}, "order_by=()"),
        ("roles", {"order_by": ["-"]}, "order_by=('-',)"),
        ("roles", {"where": " "}, "where=' '"),
        (
            "roles",
            {"key": "second", "order_by": "name"},
            "has order_by=('name',), and master:roles has ('id',)",
        ),
        ("others", {"key": "master:roles"}, "belongs to roles"),
    ],
)
def test_a_wrong_registration_is_told_and_changes_nothing(
    table: Any, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_cache, "TABLE_TO_CACHE_KEYS", {})
    roles = MasterCache.register("roles")
    with pytest.raises(master_cache.MasterCacheError) as caught:
        MasterCache.register(table, **options)
    assert words in str(caught.value)
    assert caught.value.hint
    assert {"roles": [roles]} == master_cache.TABLE_TO_CACHE_KEYS


def test_the_one_line_of_a_route_is_what_the_sample_writes_in_seven() -> None:
    router = BinlogRouter()
    (route,) = router.refresh_master_cache("public", "roles")
    router.refresh_master_cache("public", "shop.x")
    written = next(each for each in setup_router().routes if each.table == "roles")
    assert (route.id, route.columns, route.coalesce) == (written.id, written.columns, written.coalesce)
    assert_fires(router, row_change("roles", "truncate"), "cdc_tasks.refresh_master_cache", args=["roles"])


def test_somebody_elses_app_gets_the_tasks_of_the_cache_and_nothing_of_the_help_desk() -> None:
    code = (
        "import sys; from celery import Celery, current_app; app = Celery('shop')\n"
        "from cdc_tasks import MasterCache, master_cache; MasterCache.register('countries')\n"
        "print(current_app.main, 'cdc_tasks.celery' in sys.modules, list(master_cache.TABLE_TO_CACHE_KEYS))\n"
        "print(sorted(name for name in app.tasks if name.startswith('cdc_tasks.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == "shop False ['countries']"
    assert ast.literal_eval(second) == [
        f"cdc_tasks.{name}"
        for name in ("refill_master_caches", "refresh_all_master_caches", "refresh_master_cache")
    ]


def test_a_worker_refreshes_one_table_and_all_of_them(helpdesk: HelpDesk, worker: Worker) -> None:
    helpdesk.database.execute("INSERT INTO roles (name) VALUES ('Admin')")
    helpdesk.send("cdc_tasks.refresh_master_cache", "roles", queue="cdc_cache")
    wait_until(lambda: _cached(helpdesk, "master:roles"), what="the roles to be cached")
    helpdesk.database.execute("UPDATE roles SET name = 'Super Admin'")

    helpdesk.send("cdc_tasks.refresh_all_master_caches", queue="cdc_cache")

    wait_until(lambda: "Super Admin" in str(_cached(helpdesk, "master:roles")), what="the roles to be fresh")
    names = {key.name for keys in TABLE_TO_CACHE_KEYS.values() for key in keys}
    wait_until(
        lambda: all(helpdesk.broker.cache.exists(name) for name in names), what="every key to be there"
    )


def _cached(helpdesk: HelpDesk, key: str) -> Any:
    return json.loads(helpdesk.broker.cache.get(key) or b"null")
