"""When each event is logged: the words of docs/reference/events.md. Levels and fields come from the calls."""

from __future__ import annotations

from typing import Final

__all__ = ["FIELDS", "LISTENER", "WORKERS"]

# group: {event: when it is logged}
LISTENER: Final = {
    "Start and end": {
        "starting": "The listener starts, with this `CDC_NAME` and number of routes.",
        "streaming": "The listener reads the log. PostgreSQL: `slot`, `plugin`; MySQL and MariaDB: `position`, `server`.",
        "standby": "Another listener with this `CDC_NAME` reads. This one takes over when the other ends.",
        "stopped": "The listener was stopped, and has finished its batch.",
        "stopped_while_waiting": "The listener was stopped while it waited for a server. Nothing was acknowledged.",
        "failed": "The listener ends with status 1: a person is needed. `code` is an [error code](errors.md).",
        "unknown_variable": "A variable `CDC_…` is set that nothing reads.",
        "no_routes": "`CDC_ROUTES` has no routes: nothing fires a task.",
    },
    "Changes": {
        "batch": "A batch was read and routed: its changes, what they fired, where it ends.",
        "change": "One change of a batch, or one row of a backfill, with the tasks that it fired and those that were parked. It "
        "has no values of the row.",
        "parked": "A route or the broker could not take a change, which is kept.",
        "message_ignored": "A logical message with the listener's prefix is not valid JSON for it. Any role can write one.",
        "context_ignored": "A transaction has written an invalid [context](../context.md): it is left out.",
        "commit_not_visible": "A transaction has been in the log for seconds, but no session sees it yet: its tasks wait. Logged "
        "again each minute.",
        "commit_visible": "Sessions see the transaction now.",
    },
    "Servers that are down": {
        "source_is_away": "The database does not answer, or cannot be read now. The listener retries.",
        "waiting": "The broker or the Redis of `CACHE_URL` does not answer. The listener retries.",
        "back": "The server for which the listener waited answers again.",
        "reading_again": "The connection was lost, or the checkpoint moved: the listener reads again from the checkpoint.",
        "broker_behind": "At start-up: the broker has lost data, because its checkpoint is missing or old. `acknowledged` on "
        "PostgreSQL, `bookmark` on MySQL and MariaDB.",
        "broker_lost_data": "While the listener runs: the broker has lost data. The listener publishes again what the database "
        "still has.",
        "bookmark_not_kept": "MySQL, MariaDB: the position could not be stored in `CACHE_URL`.",
        "notes_unreadable": "The checkpoint's notes about the tables have an unknown format, and are ignored.",
    },
    "Full queues": {
        "paused": "A queue is longer than `CDC_MAX_QUEUE`, or too much is set aside or parked: the listener waits.",
        "resumed": "The queue is short enough again.",
        "set_aside": 'A queue is longer than `CDC_MAX_QUEUE`: messages of routes with `on_full="set_aside"` wait beside it.',
        "set_aside_ended": "All messages that were set aside are in the queue again.",
    },
    "Commands": {
        "command_done": "A person's command was executed.",
        "command_refused": "A person's command was refused.",
        "commands_not_read": "The commands could not be read or recorded now; the listener retries. At level warning: the broker "
        "refuses it, for example without a permission.",
        "stream_paused": "A person paused everything: nothing is read.",
        "stream_resumed": "A person resumed reading.",
        "skip_ended": "All changes that these routes had to skip have passed.",
        "reload_started": "The listener tests the current routes in another process.",
        "reload_refused": "The new routes cannot be used: the old ones stay in force.",
        "reloading": "The listener restarts its program in the same process, with the new routes.",
    },
    "Backfills and replays": {
        "backfill_accepted": "A person's backfill waits for its turn.",
        "backfill_running": "The backfill starts or continues. `rows` were sent before.",
        "backfill_done": "The backfill has sent all rows. The stream sent `left_out` of them.",
        "backfill_failed": "The backfill cannot continue. The stream does.",
        "backfill_waits": "The backfill's connection was lost. The listener retries.",
        "backfill_chunk_again": "Muted changes, or rows without their key, were streamed while a chunk was read: the listener reads "
        "it again.",
        "first_load_refused": "`run --backfill`: this table cannot be backfilled.",
        "first_load_waits": "`run --backfill`: the database did not answer. The listener retries when it reads again.",
        "backfill_offered": "A gap was accepted: these commands bring the tables up to date.",
        "backfill_not_offered": "A gap was accepted, but the tables or the broker could not be queried.",
        "replay_accepted": "A person's replay waits for its turn. `source` is `journal` or `binlog`.",
        "replay_running": "The replay starts or continues. `changes` were found before.",
        "replay_waits": "The connection to the server's log was lost. The listener retries.",
        "replay_done": "All changes of the replay have fired their routes again.",
        "replay_failed": "The replay cannot continue. The stream does.",
        "recent_changes_failed": "[Recent changes](../watch.md#what-came-last) cannot be written: Redis is down, nearly full, or refuses. The stream continues; the changes that are not written are missing there.",
        "recent_changes_work_again": "They are written again; `left_out` changes are missing.",
        "journal_gap": "Changes that were committed between these times may be missing in the journal.",
        "journal_failed": "The journal cannot be written. The stream continues; the changes that are not written are a gap in the journal.",
        "journal_works_again": "The journal can be written again.",
    },
    "Gaps": {
        "gap": "Changes of a table are missing, and the gap was not accepted yet.",
        "gap_accepted": "The listener continues without the missing changes (`--accept-gap`).",
        "gap_over": "Nothing was missing: the table was not written to.",
        "failover_lost_changes": "PostgreSQL: the new primary lacks changes whose tasks were published.",
        "first_start": "MySQL, MariaDB: there is no position for this `CDC_NAME`. The listener reads from now on.",
        "lag": "The database keeps too much log for the listener, or will soon drop it.",
        "lag_over": "The database keeps little log for the listener again.",
        "lag_unknown": "The database did not report how much log it keeps.",
        "log_soon_purged": "MySQL, MariaDB: the listener is so far behind that the server may soon purge the log that comes next.",
    },
    "PostgreSQL": {
        "slot_created": "The slot was created.",
        "slot_dropped": "A lost slot was dropped.",
        "slot_waits_for_open_transactions": "PostgreSQL creates the slot once these transactions have ended.",
        "old_plugin": "The output plugin is old. `lacks` says what is missing.",
        "publication_created": "The publication was created with the tables of the routes.",
        "publication_changed": "The publication has the tables of the routes now.",
        "publication_left_as_it_is": "The publication is sufficient, and the listener may not change it.",
        "publication_unchanged": "The publication could not be changed now. The listener retries.",
        "rows_of_tables_that_are_gone": "wal2json: the log has rows of dropped tables that no route names.",
        "order_unknown": "wal2json: the order of commits could not be looked up.",
        "tables_unseen": "Changes of these tables do not reach the listener.",
        "tables_wrong": "Something is wrong with these tables.",
        "tables_unknown": "The tables could not be checked now.",
        "table_left_the_routes": "A table was renamed, and no route names it now.",
    },
    "MySQL and MariaDB": {
        "gtids_are_on": "The listener reads by GTIDs from here on.",
        "gtids_are_off": "The listener reads by file and offset from here on.",
        "rows_without_changes": "DDL added or removed rows, which are not changes in the binlog.",
        "prepared_before_start": "An XA transaction that was prepared before the start has committed. Its changes are not known.",
        "rolled_back_after_publishing": "Changes were published that were then rolled back.",
    },
    "Metrics and console": {
        "metrics_served": "The [pages](../metrics.md) for Prometheus and probes are served.",
        "metrics_not_read": "A server did not answer the queries for `/metrics`.",
        "rates_not_written": "The routes' rates could not be written for the console now. The listener retries.",
        "metrics_server_failed": "The thread that serves the pages had an error, and continues in a second.",
        "metrics_page_failed": "A page could not be created; the client got status 500.",
        "metrics_request_failed": "A client disconnected before it had its page.",
        "console_ready": "You can open the console.",
        "consumers_not_asked": "The console could not query the workers for their queues.",
        "no_sample": "The console could not record the lag of the listener.",
        "recent_changes_failed": "Redis did not accept the [recent changes](../console.md). The stream continues; they are left out.",
        "recent_changes_work_again": "Redis accepts the recent changes again. `left_out`: how many are missing.",
        "keys_not_known": "The listener does not know a table's key, so its recent changes are shown without one.",
    },
}  # fmt: skip

WORKERS: Final = {
    "Tasks": {
        "task_gave_up": "A task failed permanently and is kept as a dead letter.",
        "task_dropped": "A task failed permanently in an app that keeps no dead letters.",
        "dead_letter_lost": "A task killed its workers and could not be stored as a dead letter. It goes back to its queue.",
        "retry_not_taken": "The broker did not accept a retry. The task stays in its queue.",
        "retry_deferred": "RabbitMQ accepts no messages. The retry is kept in Redis.",
        "deferred_retries_wait": "The retries in Redis cannot be sent yet.",
        "malformed_message_goes_back": "A message that is not a task cannot be stored as a dead letter now.",
        "unknown_task_goes_back": "An unknown task cannot be stored as a dead letter now.",
        "crash_count_not_cleared": "A task that has ended still counts as one that may have killed its worker, for at most a day.",
        "context_not_written": "The [context](../context.md#for-every-request) of a request or a task could not be written. Its "
        "changes have none.",
    },
    "Start": {
        "celery_version_lacks_parts": "The installed Celery lacks features.",
        "settings_weaken_guarantees": "The module of `CELERY_CONFIG_MODULE`, or an app with `install`, has settings that break the "
        "guarantees.",
        "installed_after_tasks": "`cdc_tasks.install` was called after tasks were created. These keep the options that they got from "
        "Celery then, such as `acks_late`.",
        "unknown_variable": "A variable `CDC_…` is set that nothing reads.",
        "celeryconfig_not_used": "There is a `celeryconfig.py` that does not start with the settings of cdc-tasks.",
        "result_backend_not_used": "`CELERY_RESULT_BACKEND` is set, but no results are kept.",
        "foreign_worker_takes_our_tasks": "A worker of another application takes tasks from our queues.",
        "messages_unacked_by_kombus_transport": "Workers with kombu's own transport have not acknowledged messages that they "
        "took.",
        "other_workers_unknown": "The other workers could not be queried.",
        "queues_without_worker": "No worker takes tasks from these queues.",
    },
    "Messages and cache": {
        "message_sent": "A service has accepted a message.",
        "messages_queued": "Messages about a change of a ticket were queued.",
        "nothing_sent": "A change needs no message, or has no recipient. `reason` has the reason.",
        "unknown_time_zone": "A user's preferences name an unknown time zone.",
        "master_cache_refreshed": "A table's keys were replaced, or a newer refresh has done it.",
        "master_cache_refilled": "Missing keys were written, or a newer refresh has done it.",
        "master_cache_not_refilled": "The database has no such table, or denies access.",
        "dead_letters_not_counted": "Flower's `/metrics` lacks our numbers: Redis did not answer.",
        "steady_clock_not_read": "Redis did not answer. Messages that are due later wait a little longer.",
    },
    "RabbitMQ": {
        "broker_blocked": "RabbitMQ accepts no messages: its memory or disk alarm is on.",
        "broker_unblocked": "RabbitMQ accepts messages again.",
        "queues_for_waits_missing": "RabbitMQ lacks the queues for delayed tasks. The worker creates them.",
        "binding_not_made": "The user may not bind a queue, which is expected to be bound.",
    },
    "Order by key on RabbitMQ": {
        "keyed_messages_wait": "The Redis of `CACHE_URL` did not answer which keys are held.",
        "key_waits_for_redis": "Redis could not record that a task has ended, so the worker does not acknowledge it yet.",
        "keyed_message_not_sent": "The next message of a key that was held could not be sent. The worker retries.",
        "keyed_queues_not_ours": "This worker may not create these queues, or not consume from them. It consumes from the others.",
        "keyed_message_dropped": "The worker dropped a message: it was delivered again although its task has ended; or it is a "
        "second copy of one that was set aside and has run since; or it is a retry whose try has run again.",
        "keyed_messages_may_run_again": "Redis could not record which tasks have ended, because the worker lost its connection or ended. A "
        "task whose acknowledgement was lost runs again, before the others of its key.",
    },
    "Old names of queues": {
        "queue_has_a_new_name": "`-Q` or a setting names a queue by its old name.",
        "old_queue_drained": "The worker also takes tasks from a queue with its old name.",
        "old_queue_left": "A queue with an old name has messages of another program. It is left alone.",
        "old_queue_closed_to_us": "The user may not read a queue with an old name.",
        "old_queues_unknown": "Redis did not answer whether there are queues with old names.",
    },
}  # fmt: skip

# The fields that many events have.
FIELDS: Final = {
    "attempt": "how often it was tried",
    "by": "who gave the command",
    "code": "an [error code](errors.md)",
    "error": "a text for people",
    "found": "a text for people",
    "hint": "the exact command or SQL that fixes it",
    "position": "a place in the database's log",
    "reason": "a text for people",
    "what": "which server",
}  # fmt: skip
