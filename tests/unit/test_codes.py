"""Codes of errors are for programs: once given, they stay."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import cdc_tasks
import listener
from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A code may be added. One that is taken away, or changed, breaks an alarm.
_CODES = """
backfill_refused context enqueued_task task_not_accepted
answer_lost app_not_found bad_preference broker broker_away broker_blocked cache_away capture change_not_found
checkpoint_moved given_change no_such_table row_filter
command_refused console_refused console_url database_away database_refused envelope first_routes gap groups_unknown
gtid_mode install key_value journal killed_workers lock_not_available malformed_message mark master_cache maybe_sent
message_too_large metrics_address missing_extra no_redis not_accepting not_parked not_sent not_well not_yet old_celery
open_flower other_log password permission_denied rate_limited recording refused reload route server_id_taken settings
slot_in_use source source_lost table_renamed task_modules too_many_connections try_again unavailable undescribed_table
unfit_pool unknown_action unknown_database unknown_database_type unroutable unknown_key unknown_kind unknown_letter
unknown_service unknown_table unknown_task unknown_user unreadable_record value_missing vault not_a_time record_refused
"""

# Of findings, and of errors whose class stands for several.
_OWN_CODES = """
backfill_failed backfill_no_route backfill_over backfill_unknown backfill_where
journal_gap journal_missing journal_other replay_no_route replay_over replay_unknown
bookmark bookmark_not_durable broadcast broker broker_access_refused broker_disk broker_lost_data
broker_memory broker_rights broker_settings cache celery_config_module celery_settings certificate
console_address console_exposed
checkpoint_of_other_database durability foreign_worker from_start_unsupported kombu_unacked kombu_version
message_format no_consumer no_database_name not_a_time no_listener no_partitions no_queue no_workers
not_paused partial_batch
queue queue_differs
queue_unusable reload_refused route_gone routes_not_loaded row_not_rendered row_too_large several_queues task_options
no_routes sample_routes transport_not_installed unknown_command unknown_route unknown_task unknown_variable
unreadable_deferred workers workers_not_asked given_row no_such_column no_such_event
message_unknown not_a_rate route_unknown
"""


def _subclasses(kind: type[CDCError]) -> set[type[CDCError]]:
    found = set(kind.__subclasses__())
    return found.union(*map(_subclasses, found)) if found else found


def test_no_code_was_taken_away_or_changed() -> None:
    for package in (cdc_tasks, listener):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = {kind for kind in _subclasses(CDCError) if kind.__module__.startswith(("cdc_tasks.", "listener."))}
    assert {kind.code for kind in ours} == set(_CODES.split())


def _calls_in_the_listener() -> Iterator[tuple[str, ast.Call]]:
    for room in ("core", "publish", "control", "daemon", "cli", "console"):
        for path in (Path(listener.__path__[0]) / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path}:{node.lineno}", node


def test_every_finding_has_a_code() -> None:
    without = [
        place
        for place, call in _calls_in_the_listener()
        if isinstance(call.func, ast.Name) and call.func.id == "Finding"
        if "code" not in {each.arg for each in call.keywords}
    ]
    assert without == []


def test_no_code_that_a_finding_or_an_error_has_of_its_own_was_taken_away_or_changed() -> None:
    codes = {
        each.value.value
        for _, call in _calls_in_the_listener()
        for each in call.keywords
        if each.arg == "code" and isinstance(each.value, ast.Constant)
    }
    assert set(_OWN_CODES.split()) - codes == set()


def test_an_error_has_its_classs_code_or_one_of_its_own() -> None:
    class SlotIsBusyHTTPError(CDCError):
        """The slot is busy."""

    assert SlotIsBusyHTTPError().code == "slot_is_busy_http"
    assert SlotIsBusyHTTPError("at 3", code="busy_at_night").code == "busy_at_night"
    assert CDCError().code == "error"
