"""The pages `/metrics`, `/livez` and `/readyz`, in their own threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from cdc_tasks.errors import CDCError
from listener.metrics.collector import Known

__all__ = ["MetricsAddressError", "MetricsServer"]

log = structlog.get_logger()

_TIMEOUT: Final = 10.0  # seconds for a request
_MOST: Final = 8  # requests at the same time
_TEXT: Final = "text/plain; charset=utf-8"
_AGAIN_AFTER: Final = 1.0  # seconds, after the server's thread failed


class MetricsAddressError(CDCError):
    """CDC_METRICS_ADDRESS cannot be used."""


class MetricsServer:
    """Serves the pages from `with` on. The port is bound at creation."""

    def __init__(self, host: str, port: int, known: Known, registry: CollectorRegistry) -> None:
        """Raise MetricsAddressError if the address cannot be used. Port 0: any free port."""
        self._known = known
        self._registry = registry
        self._server = _listening(host, port, self._answer)
        self._thread = threading.Thread(target=self._serve, name="metrics-server", daemon=True)
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        """The address of the pages."""
        host, port = self._server.server_address[:2]
        named = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{named}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        for each in self._samplers:
            each.start()
        log.info("metrics_served", url=f"{self.url}/metrics")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for each in self._samplers:
            each.stop()
        self._server.shutdown()
        self._server.server_close()

    @property
    def _samplers(self) -> tuple[Any, ...]:
        known = self._known
        return known.source, known.store, known.queues, known.workers

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                self._server.serve_forever(poll_interval=0.1)
            except Exception as error:  # noqa: BLE001 - whatever it is: the pages have to come back
                log.warning("metrics_server_failed", error=type(error).__name__)
                self._closed.wait(_AGAIN_AFTER)

    def _answer(self, path: str, accept: str | None) -> tuple[int, str, bytes]:
        """Return a page's status, content type and text."""
        pages: dict[str, Callable[[], tuple[int, str]]] = {"/livez": self._live, "/readyz": self._ready}
        if path == "/metrics":
            encode, content_type = choose_encoder(accept or "")
            return 200, content_type, encode(self._registry)
        page = pages.get(path)
        if page is None:
            return 404, _TEXT, b"There are /metrics, /livez and /readyz.\n"
        status, text = page()
        return status, _TEXT, f"{text}\n".encode()

    def _live(self) -> tuple[int, str]:
        condition = self._known.condition
        return (200, "live") if condition.is_live else (503, f"stuck for {condition.moved:.0f} seconds")

    def _ready(self) -> tuple[int, str]:
        condition = self._known.condition
        if condition.reasons:
            return 503, f"not ready, {condition.role}: {', '.join(condition.reasons)}"
        return 200, f"ready, {condition.role}"


_Answer = Callable[[str, str | None], tuple[int, str, bytes]]


def _listening(host: str, port: int, answer: _Answer) -> _Server:
    """Return a server bound to the port. Raise MetricsAddressError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        kind = type("_FamilyServer", (_Server,), {"address_family": family})
        return kind(address, answer)  # type: ignore[no-any-return]  # made by `type`
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise MetricsAddressError(
            f"CDC_METRICS_ADDRESS={host}:{port} cannot be used: {why}.",
            hint="Choose a free port of this machine, another one for each listener on it, or leave it out:\n"
            f"  ss -ltnp 'sport = :{port}'\n  export CDC_METRICS_ADDRESS={host}:{(port + 1) % 65536}",
        ) from error


class _Server(ThreadingHTTPServer):
    """Answers a bounded number of requests at a time, each in a thread that ends with the process."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Any, answer: _Answer) -> None:
        self.answer = answer
        self._free = threading.BoundedSemaphore(_MOST)
        super().__init__(address, _Request)

    def server_bind(self) -> None:
        """Bind without a look-up of the host's name, which may take long."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - its signature
        """Do not log a disconnected client."""
        log.debug("metrics_request_failed")


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT
    server_version = "cdc-tasks"
    sys_version = ""

    def do_GET(self) -> None:
        status, content_type, text = self._page()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_GET  # noqa: N815 - its name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its signature
        """Do not log requests: there is one every few seconds."""

    def _page(self) -> tuple[int, str, bytes]:
        try:
            return self.server.answer(self.path.partition("?")[0], self.headers.get("Accept"))
        except Exception as error:  # noqa: BLE001 - anyone who asks has to see that something is wrong
            log.warning("metrics_page_failed", error=type(error).__name__)
            return 500, _TEXT, f"{type(error).__name__}\n".encode()
