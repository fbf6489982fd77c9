"""When each event is logged: the words of docs/reference/events.md. Levels and fields come from the calls."""

from __future__ import annotations

from typing import Final

__all__ = ["FIELDS", "LISTENER", "WORKERS"]

# group: {event: when it is logged}
LISTENER: Final = {
    "Start and end": {
        "starting": "The listener starts, with this `CDC_NAME` and number of routes.",
        "streaming": "The listener reads the log. PostgreSQL: `slot`, `plugin`; MySQL and MariaDB: `position`, `server`.",
        "standby": "Another listener with this `CDC_NAME` reads. This one takes over when that ends.",
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
        "message_ignored": "A logical message with our prefix is no JSON of ours. Any role can write one.",
        "context_ignored": "What a transaction says of itself makes no [context](../context.md): it is left out.",
        "commit_not_visible": "A transaction has been in the log for seconds, and no session sees it yet: its tasks wait. Logged "
        "again each minute.",
        "commit_visible": "Sessions see the transaction now.",
    },
    "Servers that are away": {
        "source_is_away": "The database does not answer, or cannot be read now. The listener retries.",
        "waiting": "The broker or the Redis of `CACHE_URL` does not answer. The listener retries.",
        "back": "What the listener waited for answers again.",
        "reading_again": "The connection was lost, or the checkpoint moved: the listener reads again from the checkpoint.",
        "broker_behind": "At the start: the broker has lost data, since its checkpoint is gone or old. `acknowledged` on "
        "PostgreSQL, `bookmark` on MySQL and MariaDB.",
        "broker_lost_data": "While the listener runs: the broker has lost data. The listener publishes again what the database "
        "still has.",
        "bookmark_not_kept": "MySQL, MariaDB: the position could not be noted in `CACHE_URL`.",
        "notes_unreadable": "What the checkpoint says of the tables is not in our format, and is ignored.",
    },
    "Full queues": {
        "paused": "A queue is longer than `CDC_MAX_QUEUE`, or too much is set aside or parked: the listener waits.",
        "resumed": "The queue is short enough again.",
        "set_aside": 'A queue is longer than `CDC_MAX_QUEUE`: messages of routes with `on_full="set_aside"` wait beside it.',
        "set_aside_ended": "The messages that were set aside are all in the queue again.",
    },
    "Commands": {
        "command_done": "A person's command was done.",
        "command_refused": "A person's command was not done.",
        "commands_not_read": "The commands could not be read or recorded now; the listener tries again. As a warning: the broker "
        "refuses it, for example without a permission.",
        "stream_paused": "A person paused everything: nothing is read.",
        "stream_resumed": "A person let the reading go on.",
        "skip_ended": "All changes that these routes were to skip have passed.",
        "reload_started": "The listener tries the routes as they are now, in another process.",
        "reload_refused": "The new routes cannot be used: the old ones stay in force.",
        "reloading": "The listener runs its program again, with the new routes.",
    },
    "Backfills and replays": {
        "backfill_accepted": "A person's backfill waits for its turn.",
        "backfill_running": "The backfill's turn has come, or the listener goes on with it. `rows` were sent before.",
        "backfill_done": "The backfill has sent all rows. The stream sent `left_out` of them.",
        "backfill_failed": "The backfill cannot go on. The stream does.",
        "backfill_waits": "The backfill's connection was lost. The listener tries again.",
        "backfill_chunk_again": "Muted changes, or rows without their key, came by while a chunk was read: the listener reads it "
        "again.",
        "first_load_refused": "`run --backfill`: this table cannot be backfilled.",
        "first_load_waits": "`run --backfill`: the database did not answer. The listener asks again when it reads again.",
        "backfill_offered": "A gap was accepted: these commands bring the tables up to date.",
        "backfill_not_offered": "A gap was accepted, and the tables or the broker could not be asked.",
        "replay_accepted": "A person's replay waits for its turn. `source` is `journal` or `binlog`.",
        "replay_running": "The replay's turn has come, or the listener goes on with it. `changes` were found before.",
        "replay_waits": "The connection to the server's log was lost. The listener tries again.",
        "replay_done": "All changes of the replay have fired their routes again.",
        "replay_failed": "The replay cannot go on. The stream does.",
        "recent_changes_failed": "[Recent changes](../watch.md#what-came-last) cannot be written: Redis is away, nearly full, or refuses. The stream goes on, and what is not written is missing there.",
        "recent_changes_work_again": "They are written again; `left_out` of the changes meanwhile are missing.",
        "journal_gap": "Changes that were committed between these times may be missing in the journal.",
        "journal_failed": "The journal cannot be written. The stream goes on, and what is not written is a gap in the journal.",
        "journal_works_again": "The journal can be written again.",
    },
    "Gaps": {
        "gap": "Changes of a table are missing, and nobody has accepted it yet.",
        "gap_accepted": "The listener goes on without changes that are missing (`--accept-gap`).",
        "gap_over": "Nothing was missing: the table was not written to.",
        "failover_lost_changes": "PostgreSQL: the new primary lacks changes whose tasks were published.",
        "first_start": "MySQL, MariaDB: nothing knows this `CDC_NAME`. The listener reads from now on.",
        "lag": "The database keeps too much log for us, or will soon drop it.",
        "lag_over": "The database keeps little log for us again.",
        "lag_unknown": "The database did not say how much it keeps.",
        "log_soon_purged": "MySQL, MariaDB: what is read is so old that the server may soon purge what comes next.",
    },
    "PostgreSQL": {
        "slot_created": "The slot was created.",
        "slot_dropped": "A slot that was lost was dropped.",
        "slot_waits_for_open_transactions": "PostgreSQL creates the slot when these transactions have ended.",
        "old_plugin": "The output plugin is old. `lacks` says what is missing.",
        "publication_created": "The publication was created with the tables of the routes.",
        "publication_changed": "The publication has the tables of the routes now.",
        "publication_left_as_it_is": "The publication suffices, and the listener may not change it.",
        "publication_unchanged": "The publication could not be changed now. The listener retries.",
        "rows_of_tables_that_are_gone": "wal2json: the log has rows of tables that are gone, and no route names them.",
        "order_unknown": "wal2json: the order of commits could not be looked up.",
        "tables_unseen": "Changes of these tables do not reach the listener.",
        "tables_wrong": "Something is wrong with these tables.",
        "tables_unknown": "The tables could not be checked now.",
        "table_left_the_routes": "A table was renamed, and no route names it now.",
    },
    "MySQL and MariaDB": {
        "gtids_are_on": "The listener reads by GTIDs from here on.",
        "gtids_are_off": "The listener reads by file and offset from here on.",
        "rows_without_changes": "A definition added or removed rows, which are no changes in the binlog.",
        "prepared_before_start": "An XA transaction that was prepared before the start has committed. Its changes are not known.",
        "rolled_back_after_publishing": "Changes were published that were then rolled back.",
    },
    "Metrics and console": {
        "metrics_served": "The [pages](../metrics.md) for Prometheus and probes are there.",
        "metrics_not_read": "A server did not say what `/metrics` shows of it.",
        "rates_not_written": "What the routes do a second could not be written for the console now. The listener tries again.",
        "metrics_server_failed": "The thread that serves the pages had an error, and goes on in a second.",
        "metrics_page_failed": "A page could not be made; who asked got status 500.",
        "metrics_request_failed": "A client went away before it had its page.",
        "console_ready": "The console can be opened.",
        "consumers_not_asked": "The console could not ask the workers from which queues they take.",
        "no_sample": "The console could not note how far the listener is.",
        "recent_changes_failed": "Redis did not take the [recent changes](../console.md). The stream goes on; they are left out.",
        "recent_changes_work_again": "Redis takes the recent changes again. `left_out`: how many are missing.",
        "keys_not_known": "The listener does not know a table's key, so its recent changes are shown without one.",
    },
}  # fmt: skip

WORKERS: Final = {
    "Tasks": {
        "task_gave_up": "A task is kept as a dead letter.",
        "task_dropped": "A task gave up in an app that keeps no dead letters.",
        "dead_letter_lost": "A task killed its workers and could not be kept. It goes back to its queue.",
        "retry_not_taken": "The broker did not take a retry. The task stays in its queue.",
        "retry_deferred": "RabbitMQ takes no messages. The retry is kept in Redis.",
        "deferred_retries_wait": "The retries in Redis cannot be sent yet.",
        "malformed_message_goes_back": "A message that is no task's cannot be kept as a dead letter now.",
        "unknown_task_goes_back": "A task that no module has cannot be kept as a dead letter now.",
        "crash_count_not_cleared": "A task that ended still counts as one that may have killed its worker, for a day at most.",
        "context_not_written": "The [context](../context.md#for-every-request) of a request or a task could not be written. What "
        "it wrote has none.",
    },
    "Start": {
        "celery_version_lacks_parts": "With the installed Celery, parts are missing.",
        "settings_weaken_guarantees": "The module of `CELERY_CONFIG_MODULE`, or an app with `install`, has settings with which the "
        "guarantees do not hold.",
        "installed_after_tasks": "`cdc_tasks.install` was called after tasks were made. These keep the options that Celery had for "
        "them then, such as `acks_late`.",
        "unknown_variable": "A variable `CDC_…` is set that nothing reads.",
        "celeryconfig_not_used": "A `celeryconfig.py` is there that does not start from our settings.",
        "result_backend_not_used": "`CELERY_RESULT_BACKEND` is set, and no results are kept.",
        "foreign_worker_takes_our_tasks": "A worker of another application takes tasks from our queues.",
        "messages_unacked_by_kombus_transport": "Workers with kombu's own transport have taken messages and not acknowledged "
        "them.",
        "other_workers_unknown": "The other workers could not be asked.",
        "queues_without_worker": "No worker takes tasks from these queues.",
    },
    "Messages and cache": {
        "message_sent": "A service has taken a message.",
        "messages_queued": "Messages of a ticket's change were queued.",
        "nothing_sent": "A change needs no message, or has no recipient. `reason` says why.",
        "unknown_time_zone": "A user's preferences name a time zone that is not known.",
        "master_cache_refreshed": "A table's keys were replaced, or a newer refresh has done it.",
        "master_cache_refilled": "Keys that were missing were written, or a newer refresh has done it.",
        "master_cache_not_refilled": "The database has no such table, or denies it.",
        "dead_letters_not_counted": "Flower's `/metrics` lacks our numbers: Redis did not answer.",
        "steady_clock_not_read": "Redis did not answer. Messages that are due later wait a little longer.",
    },
    "RabbitMQ": {
        "broker_blocked": "RabbitMQ takes no messages: its memory or disk alarm is on.",
        "broker_unblocked": "RabbitMQ takes messages again.",
        "queues_for_waits_missing": "RabbitMQ lacks the queues for delayed tasks. The worker makes them.",
        "binding_not_made": "The user may not bind a queue, which is expected to be bound.",
    },
    "Order by key on RabbitMQ": {
        "keyed_messages_wait": "The Redis of `CACHE_URL` did not say which keys are held up.",
        "key_waits_for_redis": "Redis did not take that a task has ended, so the worker does not acknowledge it yet.",
        "keyed_message_not_sent": "The next message of a key that was held up could not be sent. The worker tries again.",
        "keyed_queues_not_ours": "This worker may not make these queues, or not take from them. It takes from the others.",
        "keyed_message_dropped": "The worker dropped a message: it is delivered again although its task has ended; or it is a "
        "second copy of one that was put aside and has run since; or it is a retry whose try has run again.",
        "keyed_messages_may_run_again": "Redis did not take which tasks have ended, as the worker lost its connection or ended. A "
        "task whose acknowledgement was lost runs again, before the others of its key.",
    },
    "Old names of queues": {
        "queue_has_a_new_name": "`-Q` or a setting names a queue by its old name.",
        "old_queue_drained": "The worker takes tasks from a queue's old name, too.",
        "old_queue_left": "A queue with an old name of ours has messages that are not ours. It is left alone.",
        "old_queue_closed_to_us": "The user may not look into a queue with an old name.",
        "old_queues_unknown": "Redis did not say whether there are queues with old names.",
    },
}  # fmt: skip

# The fields that many events have.
FIELDS: Final = {
    "attempt": "how often it was tried",
    "by": "who gave the command",
    "code": "an [error code](errors.md)",
    "error": "a text for people",
    "found": "a text for people",
    "hint": "the exact command or SQL that mends it",
    "position": "a place in the database's log",
    "reason": "a text for people",
    "what": "which server",
}  # fmt: skip
