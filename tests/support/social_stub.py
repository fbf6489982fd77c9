"""A stub of Slack's Web API and of a Teams webhook, which can fail like them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs

__all__ = ["Drop", "Error", "RateLimit", "Slow", "SocialStub", "Status"]

_TEAMS_LIMIT = 28 * 1024


@dataclass(frozen=True)
class RateLimit:
    """429 with Retry-After."""

    seconds: int


@dataclass(frozen=True)
class Error:
    """Slack's `{"ok": false, "error": …}` with status 200."""

    code: str


@dataclass(frozen=True)
class Status:
    code: int


@dataclass(frozen=True)
class Slow:
    """Accept the message, and delay the answer."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Close the connection without an answer, with the message posted or not."""

    posted: bool


Fault = RateLimit | Error | Status | Slow | Drop


@dataclass(frozen=True)
class Posted:
    """A posted message."""

    service: str
    to: str  # Slack: the channel or user id; Teams: the webhook's name
    payload: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def heading(self) -> str:
        if self.service == "slack":
            return str(self.payload["blocks"][0]["text"]["text"])
        content = self.payload["attachments"][0]["content"] if "attachments" in self.payload else self.payload
        return str(content["body"][0]["text"])

    @property
    def text(self) -> str:
        return json.dumps(self.payload, ensure_ascii=False)


class SocialStub:
    """The server: `slack_api_url` is for the settings, `teams_url(…)` for accounts, `posted` has the messages."""

    def __init__(self) -> None:
        self.posted: list[Posted] = []
        self.attempts: dict[str, int] = defaultdict(int)  # by channel or webhook
        self.emails = {"anna@example.com": "U0ANNA"}
        self.revoked: set[str] = set()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the server: it refuses connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def slack_api_url(self) -> str:
        return f"{self.url}/api/"

    def teams_url(self, name: str) -> str:
        return f"{self.url}/workflows/{name}/triggers/manual/paths/invoke?sig=the-secret-part"

    def fail(self, to: str, *faults: Fault) -> None:
        """Make the next requests for this channel or webhook fail, one fault each."""
        self._faults[to].extend(faults)

    def always_fail(self, to: str, fault: Fault) -> None:
        self._always[to] = fault

    def recover(self, to: str) -> None:
        """Take messages again."""
        self._faults[to].clear()
        self._always.pop(to, None)

    def next_fault(self, to: str) -> Fault | None:
        self.attempts[to] += 1
        return self._faults[to].popleft() if self._faults[to] else self._always.get(to)

    def to(self, name: str) -> list[Posted]:
        return [each for each in self.posted if each.to == name]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: SocialStub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/api/"):
            self._slack(self.path.removeprefix("/api/"))
        elif self.path.startswith("/workflows/"):
            self._teams(self.path.split("/")[2])
        else:
            self._answer(404, {})

    def log_message(self, *_: object) -> None:
        pass

    def _slack(self, method: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token.startswith("xox"):
            return self._answer(200, {"ok": False, "error": "not_authed"})
        if token in self.server.stub.revoked:
            return self._answer(200, {"ok": False, "error": "token_revoked"})
        if method == "users.lookupByEmail":
            return self._look_up(self._arguments()["email"])
        if method == "chat.postMessage":
            return self._post(self._arguments())
        return self._answer(200, {"ok": False, "error": "unknown_method"})

    def _arguments(self) -> dict[str, Any]:
        if "json" in self.headers["Content-Type"]:
            return dict(json.loads(self._body))
        return {name: values[0] for name, values in parse_qs(self._body.decode()).items()}

    def _look_up(self, email: str) -> None:
        user = self.server.stub.emails.get(email)
        found = {"ok": True, "user": {"id": user}} if user else {"ok": False, "error": "users_not_found"}
        self._answer(200, found)

    def _post(self, arguments: dict[str, Any]) -> None:
        channel = arguments["channel"]
        if isinstance(arguments.get("blocks"), str):
            arguments["blocks"] = json.loads(arguments["blocks"])
        if self._fails(channel, Posted("slack", channel, arguments)):
            return None
        if channel == "C0GONE":
            return self._answer(200, {"ok": False, "error": "channel_not_found"})
        if not arguments.get("text") or len(arguments["text"]) > 40000 or len(arguments["blocks"]) > 50:
            return self._answer(200, {"ok": False, "error": "invalid_blocks"})
        self.server.stub.posted.append(Posted("slack", channel, arguments))
        return self._answer(200, {"ok": True, "channel": channel, "ts": f"{time.time():.6f}"})

    def _teams(self, name: str) -> None:
        payload = json.loads(self._body)
        if self._fails(name, Posted("teams", name, payload)):
            return None
        if len(self._body) > _TEAMS_LIMIT:
            return self._answer(413, {"error": {"code": "RequestEntityTooLarge"}})
        self.server.stub.posted.append(Posted("teams", name, payload))
        return self._answer(202, None)

    def _fails(self, to: str, message: Posted) -> bool:
        """Return whether a fault is due, and play it."""
        stub = self.server.stub
        match stub.next_fault(to):
            case RateLimit(seconds):
                self._answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": str(seconds)})
            case Error(code):
                self._answer(200, {"ok": False, "error": code})
            case Status(code):
                self._answer(code, None)
            case Slow(seconds):
                stub.posted.append(message)
                time.sleep(seconds)
                with contextlib.suppress(OSError):  # the client may have given up
                    self._answer(202, None) if message.service == "teams" else self._answer(200, {"ok": True})
            case Drop(posted):
                if posted:
                    stub.posted.append(message)
                self.close_connection = True
            case None:
                return False
        return True

    def _answer(
        self, status: int, body: dict[str, Any] | None, headers: dict[str, str] | None = None
    ) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
