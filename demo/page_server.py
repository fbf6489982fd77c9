"""Pages on this machine: the common part of the demo's servers."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["PageHandler", "PageServer"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnected early, as a closed browser tab does."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """Answers one connection; `owner` is the page whose server has accepted it."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    policy = "default-src 'none'"
    largest_body = 1 << 20  # bytes

    owner: Any

    def setup(self) -> None:
        super().setup()
        self.owner = self.server.owner

    def log_message(self, *_: object) -> None:
        """Log nothing: the terminal shows the scenario."""

    def body(self) -> bytes | None:
        """Return the body of the request; if it is too large, answer and return None."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > self.largest_body:
            self.close_connection = True
            self.answer(413, b"Too large\n", "text/plain")
            return None
        return self.rfile.read(length)

    def answer_json(self, status: int, value: object) -> None:
        self.answer(status, json.dumps(value).encode(), "application/json")

    def answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


class PageServer:
    """A server on 127.0.0.1, in threads of this process."""

    def __init__(self, handler: type[PageHandler]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://127.0.0.1:{self.port}"
