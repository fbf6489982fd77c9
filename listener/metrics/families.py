"""The numbers that `/metrics` serves: names, kinds, labels, and meaning. docs/metrics.md has the same table."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["FAMILIES", "Family"]

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


class Family(NamedTuple):
    """One number, or one for each combination of its labels. All have the label `listener`, which is CDC_NAME."""

    kind: str
    labels: tuple[str, ...]
    text: str


_ROUTE: Final = ("route", "task", "event")

FAMILIES: Final = {
    # State of the listener.
    "cdc_listener_info": Family(GAUGE, ("version", "source", "broker"), "Always 1: what runs here"),
    "cdc_role": Family(GAUGE, ("role",), "1 for what the listener is: leader, standby or starting"),
    "cdc_ready": Family(GAUGE, (), "Whether /readyz says yes"),
    "cdc_not_ready": Family(GAUGE, ("reason",), "1 for each reason why it is not ready"),
    "cdc_server_up": Family(GAUGE, ("server",), "Whether database, broker and cache answer when they are asked"),
    "cdc_routes": Family(GAUGE, (), "Routes in force"),
    "cdc_route_reloads_total": Family(COUNTER, (), "How often listeners of this name have reloaded their routes"),
    "cdc_reconnects_total": Family(COUNTER, ("server",), "How often a server was lost and connected to again"),
    "cdc_last_error_timestamp_seconds": Family(GAUGE, ("code",), "When an error of this code came last"),
    "cdc_loop_idle_seconds": Family(GAUGE, (), "Time since the last batch; batches come four times a second"),
    "cdc_source_silence_seconds": Family(GAUGE, (), "Time since the database was last heard of"),
    # Work done.
    "cdc_changes_read_total": Family(COUNTER, ("event",), "Changes that were read and are done with"),
    "cdc_changes_published_total": Family(COUNTER, _ROUTE, "Changes that fired a route, and that the broker holds"),
    "cdc_changes_filtered_total": Family(COUNTER, _ROUTE, "Changes that a route watches and did not fire for"),
    "cdc_changes_parked_total": Family(COUNTER, _ROUTE, "Changes that a route could not take"),
    "cdc_recent_changes_noted_total": Family(COUNTER, (), "Changes that `changes` and the console can show"),
    "cdc_recent_changes_left_out_total": Family(COUNTER, ("reason",), "Changes that they cannot: rate, store"),
    "cdc_batches_total": Family(COUNTER, (), "Batches with changes that the broker holds"),
    "cdc_publish_duration_seconds": Family(HISTOGRAM, (), "From reading a batch until the broker holds it"),
    "cdc_commit_to_queue_seconds": Family(HISTOGRAM, (), "From the commit of a batch's oldest change until then"),
    # Lag.
    "cdc_lag_seconds": Family(GAUGE, (), "Age of the oldest change that is not published, at most"),
    "cdc_lag_bytes": Family(GAUGE, (), "Log that is not published yet"),
    "cdc_log_retained_bytes": Family(GAUGE, (), "Log that the database keeps for us"),
    "cdc_log_left_bytes": Family(GAUGE, (), "Log until the database drops what it keeps for us"),
    "cdc_lag_alarm_bytes": Family(GAUGE, (), "The setting CDC_LAG_ALARM"),
    # Waiting.
    "cdc_paused": Family(GAUGE, ("reason",), "Whether the stream waits, and for what"),
    "cdc_route_paused": Family(GAUGE, ("route", "task"), "Whether a person has paused the route"),
    "cdc_parked_changes": Family(GAUGE, (), "Changes that are parked now"),
    "cdc_queue_messages": Family(GAUGE, ("queue",), "Messages in the queue, and those that wait for a key"),
    "cdc_queue_oldest_message_age_seconds": Family(GAUGE, ("queue",), "Age of the queue's oldest message, about"),
    "cdc_queue_alarm_seconds": Family(GAUGE, (), "The setting CDC_QUEUE_ALARM"),
    "cdc_set_aside_messages": Family(GAUGE, ("queue",), "Messages beside a queue that is full, or of a paused route"),
    "cdc_held_keys": Family(GAUGE, (), "Keys for which messages wait, or that a failed task holds"),
    "cdc_backfills": Family(GAUGE, ("state",), "Backfills that wait, run, are paused or have failed"),
    # Workers.
    "cdc_dead_letters": Family(GAUGE, ("task",), "Tasks that gave up, and are there to be replayed or dropped"),
    "cdc_tasks_given_up_total": Family(COUNTER, ("task",), "Tasks that gave up so far"),
    "cdc_tasks_retried_total": Family(COUNTER, ("task",), "Retries of tasks"),
    "cdc_messages_delivered_total": Family(COUNTER, ("service",), "Messages that a service took"),
    "cdc_rate_waits_total": Family(COUNTER, ("service",), "Messages that a rate limit made wait"),
}  # fmt: skip
