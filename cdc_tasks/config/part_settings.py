"""The settings that `cdc_tasks.install` adds below an app's own; `cdc_tasks.config.celery` has the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdc_tasks.installed import Parts

__all__ = ["settings_of", "use_settings"]


def use_settings(app: Any, parts: Parts) -> None:
    """Put our settings between the app's own and Celery's defaults, now and whenever it is configured again."""

    def add(source: Any, **_: Any) -> None:
        if ours not in source.maps:
            for maps in (source.maps, source.defaults):
                maps.insert(len(maps) - 1, ours)

    ours = settings_of(parts)
    app.on_after_configure.connect(add, weak=False)
    if app.configured:
        add(app.conf)


def settings_of(parts: Parts) -> dict[str, Any]:
    """Return the settings of these parts."""
    found: dict[str, Any] = {}
    if parts.transport:
        found |= {
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "broker_channel_error_retry": True,
            "broker_heartbeat": 4,
            "control_queue_exclusive": False,
            "control_queue_durable": True,
        }
    if parts.late_acks:
        found |= {
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "task_retry_on_worker_lost": True,
            "worker_cancel_long_running_tasks_on_connection_loss": True,
        }
    if parts.dead_letters:
        found["worker_consumer"] = "cdc_tasks.worker.consumer:Consumer"
    return found
