"""Flower's settings, each with its reason. They apply in any directory.

The command line, FLOWER_… variables and a `flowerconfig.py` override them. Flower has no hook for defaults. It reads
its options and then imports the app's modules. Celery sends a signal at that moment, and `prepare` runs.
"""

from __future__ import annotations

import os
import re
from html import escape
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from cdc_tasks.environment import secret_of
from cdc_tasks.errors import CDCError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ConsoleUrlError", "OpenFlowerError", "is_flower", "prepare"]

_LOOPBACK: Final = "127.0.0.1"
# Flower keeps each task in memory; its default of 100,000 tasks needs hundreds of megabytes.
_MAX_TASKS: Final = 10_000
_FLOWERS_OWN_MAX_TASKS: Final = 100_000
# The list of tasks shows each task's change and result, not only that it ran. A change is shown by its table, event and
# position, without its row.
_COLUMNS: Final = "name,uuid,state,args,kwargs,result,received,runtime,worker"
_FLOWERS_OWN_COLUMNS: Final = "name,uuid,state,received,runtime,worker"
# Before the fields on Flower's page of a task.
_TASK_ID: Final = re.compile(rb'<p id="taskid"[^>]*>[^<]*</p>')


class OpenFlowerError(CDCError):
    """Flower would be open to the network, where its pages show and start tasks."""


class ConsoleUrlError(CDCError):
    """CDC_CONSOLE_URL is not the address of a page."""


def is_flower() -> bool:
    """Return whether this process is Flower."""
    context = click.get_current_context(silent=True)
    return context is not None and context.info_name == "flower"


def prepare() -> None:
    """Set our defaults, metrics and links in Flower. Raises OpenFlowerError if the address needs a password.

    Raises SettingsError if the password file cannot be read, and ConsoleUrlError.
    """
    from tornado.options import options

    from cdc_tasks.worker import metrics

    options.address = options.address or _LOOPBACK
    if options.max_tasks == _FLOWERS_OWN_MAX_TASKS:
        options.max_tasks = _MAX_TASKS
    if options.tasks_columns == _FLOWERS_OWN_COLUMNS:
        options.tasks_columns = _COLUMNS
    if not options.basic_auth and (users := secret_of("FLOWER_BASIC_AUTH")):
        options.basic_auth = users.split(",")
    if console := os.environ.get("CDC_CONSOLE_URL", "").strip():
        _link_to(console)
    if not (options.basic_auth or options.auth):
        _check_address(options.address, options.unix_socket)
        _take_known_hosts_only()
    # Adds dead letters and parked changes to /metrics. That page needs no password: it has only numbers.
    metrics.expose()


def _link_to(console: str) -> None:
    """Add a link to the console's page of a task to Flower's page of it.

    Flower escapes the result of `format_task`, so the link has to be put into the page itself.
    """
    from flower.views.tasks import TaskView
    from tornado.options import options

    if not console.startswith(("http://", "https://")):
        raise ConsoleUrlError(
            f"CDC_CONSOLE_URL={console} is not a URL.", hint="Write e.g. http://127.0.0.1:5556"
        )

    class LinkedTask(TaskView):  # type: ignore[misc]  # Flower has no types
        def render_string(self, template_name: str, **values: Any) -> bytes:
            page: bytes = super().render_string(template_name, **values)
            address = escape(f"{console.rstrip('/')}/tasks/{quote(self.path_args[0], safe='')}")
            link = (
                f'<p class="cdc-console"><a href="{address}">Which change it came from: the console</a></p>'
            )
            return _TASK_ID.sub(lambda found: found[0] + link.encode(), page, count=1)

    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    _add_at_start(r".*", [(rf"{re.escape(prefix)}/task/(.+)", LinkedTask)])


def _add_at_start(host: str, handlers: list[Any]) -> None:
    """Add these handlers before Flower's own when it starts to serve."""
    from flower.app import Flower

    start = Flower.start_http_server

    def start_http_server(self: Any) -> Any:
        self.add_handlers(host, handlers)
        return start(self)

    Flower.start_http_server = start_http_server


def _check_address(address: str, unix_socket: str) -> None:
    if unix_socket or _is_loopback(address):
        return
    raise OpenFlowerError(
        f"Flower on {address} without a password would be open to the network.",
        hint="Set FLOWER_BASIC_AUTH=user:password, or omit the address: then Flower listens on this machine only.",
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _take_known_hosts_only() -> None:
    """Refuse any other Host header: with DNS rebinding another site's page could read ours."""
    from tornado.web import RequestHandler

    class WrongHost(RequestHandler):
        def prepare(self) -> None:
            self.set_status(403)
            self.finish(
                f"{self.request.host_name} is not a name of this Flower. Add it: CDC_FLOWER_HOSTS=flower.example.com\n"
            )

    _add_at_start(_anything_but(_known_hosts()), [(r".*", WrongHost)])


def _known_hosts() -> list[str]:
    more = os.environ.get("CDC_FLOWER_HOSTS", "").split(",")
    return ["localhost", _LOOPBACK, "[::1]", *(name.strip() for name in more if name.strip())]


def _anything_but(names: Iterable[str]) -> str:
    known = "|".join(map(re.escape, names))
    return rf"^(?!(?:{known})$).*$"
