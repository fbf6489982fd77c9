"""A replacement for Slack and Microsoft Teams, with a page that shows the messages."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from demo.page_server import PageHandler, PageServer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Inbox", "Message"]

_KEPT = 500  # messages kept for the page
_LARGEST_CARD = 28 * 1024  # bytes; the limit of Teams
# The page loads nothing from other hosts, and nothing that a message contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message that the service would show."""

    number: int  # 1, 2, 3, … in the order of arrival
    service: str  # slack, teams
    to: str  # an e-mail address, a channel, or the name in a webhook's URL
    text: str  # the plain text, as on a lock screen
    content: dict[str, Any]  # Slack: the arguments of chat.postMessage; Teams: the Adaptive Card
    at: float  # time.monotonic() after the request was read
    clock: str  # the same moment as ISO 8601

    def to_json(self) -> dict[str, Any]:
        """Return the fields that the page needs."""
        return {
            "number": self.number,
            "service": self.service,
            "to": self.to,
            "content": self.content,
            "clock": self.clock,
        }


class Inbox(PageServer):
    """A server on 127.0.0.1, in threads of this process, one of which calls `on_message`."""

    def __init__(self, on_message: Callable[[Message], None] = lambda _message: None) -> None:
        self._on_message = on_message
        self._messages: deque[Message] = deque(maxlen=_KEPT)
        self._numbers = itertools.count(1)
        self._people: dict[str, str] = {}  # Slack's user id: e-mail address
        self._lock = threading.Lock()
        super().__init__(_Handler)

    @property
    def slack_api_url(self) -> str:
        """The value for SLACK_API_URL."""
        return f"{self.url}/api/"

    def teams_webhook(self, name: str) -> str:
        """Return a webhook URL like that of a Workflow; the page shows `name` as the recipient."""
        return f"{self.url}/workflows/{quote(name, safe='')}/triggers/manual/paths/invoke?sig=secret"

    def messages(self, after: int = 0) -> list[Message]:
        """Return the messages with a number above `after`, oldest first."""
        with self._lock:
            return [message for message in self._messages if message.number > after]

    def receive(self, service: str, to: str, text: str, content: dict[str, Any]) -> None:
        """Store a message, and report it."""
        with self._lock:
            message = Message(
                number=next(self._numbers),
                service=service,
                to=self._people.get(to, to),
                text=text,
                content=content,
                at=time.monotonic(),
                clock=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
            self._messages.append(message)
        self._on_message(message)

    def user_id(self, email: str) -> str:
        """Return the user id of an e-mail address: always the same, and different for each address."""
        letters = "".join(letter for letter in email.partition("@")[0].upper() if letter.isalnum())
        user_id = f"U0{letters}"
        with self._lock:
            while self._people.setdefault(user_id, email) != email:
                user_id += "X"
        return user_id


class _Handler(PageHandler):
    policy = _POLICY
    owner: Inbox

    def do_GET(self) -> None:  # noqa: N802 - http.server calls it
        url = urlsplit(self.path)
        if url.path == "/":
            self.answer(200, files(__package__).joinpath("inbox.html").read_bytes(), "text/html")
        elif url.path == "/messages":
            after = int("".join(filter(str.isdigit, url.query)) or 0)
            found = [message.to_json() for message in self.owner.messages(after)]
            self.answer_json(200, found)
        elif url.path.startswith("/tickets/"):
            self.answer(200, b"In your application this would be the ticket's page.\n", "text/plain")
        else:
            self.answer(404, b"Not found\n", "text/plain")

    def do_POST(self) -> None:  # noqa: N802 - the same
        body = self.body()
        if body is None:
            return None
        path = urlsplit(self.path).path
        if path.startswith("/api/"):
            return self.answer_json(200, self._slack(path.removeprefix("/api/"), body))
        if path.startswith("/workflows/"):
            return self._teams(unquote(path.split("/")[2]), body)
        return self.answer(404, b"Not found\n", "text/plain")

    def _slack(self, method: str, body: bytes) -> dict[str, Any]:
        """Answer like the Web API (https://docs.slack.dev/apis/web-api): errors also have status 200."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token.startswith("xox"):
            return {"ok": False, "error": "invalid_auth" if token else "not_authed"}
        try:
            arguments = _arguments(self.headers.get("Content-Type", ""), body)
        except ValueError:
            return {"ok": False, "error": "invalid_json"}
        if method == "auth.test":
            return {"ok": True, "team": "demo", "user": "cdc-tasks", "user_id": "U0CDCTASKS"}
        if method == "users.lookupByEmail":
            email = str(arguments.get("email", ""))
            found = {"id": self.owner.user_id(email), "profile": {"email": email}}
            return {"ok": True, "user": found} if "@" in email else {"ok": False, "error": "users_not_found"}
        if method == "chat.postMessage":
            return self._posted(arguments)
        return {"ok": False, "error": "unknown_method"}

    def _posted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel, text = str(arguments.get("channel") or ""), str(arguments.get("text") or "")
        blocks = arguments.get("blocks") or []
        if not channel:
            return {"ok": False, "error": "channel_not_found"}
        if not text and not blocks:
            return {"ok": False, "error": "no_text"}
        if not isinstance(blocks, list) or len(blocks) > 50:
            return {"ok": False, "error": "invalid_blocks"}
        content = {"text": text, "blocks": blocks}
        self.owner.receive("slack", channel, _unescaped(text), content)
        return {"ok": True, "channel": channel, "ts": f"{time.time():.6f}", "message": content}

    def _teams(self, name: str, body: bytes) -> None:
        """Answer like the trigger "When a Teams webhook request is received": 202 without a body."""
        try:
            payload = json.loads(body)
            card = payload["attachments"][0]["content"] if "attachments" in payload else payload
            is_card = card["type"] == "AdaptiveCard"
        except (ValueError, LookupError, TypeError):
            is_card = False
        if not is_card:
            return self.answer_json(400, {"error": {"code": "TriggerInputSchemaMismatch"}})
        if len(body) > _LARGEST_CARD:
            return self.answer_json(413, {"error": {"code": "RequestEntityTooLarge"}})
        self.owner.receive("teams", name, str(card.get("fallbackText", "")), card)
        return self.answer(202, b"", "text/plain")


def _arguments(content_type: str, body: bytes) -> dict[str, Any]:
    """Parse a form or JSON; raises ValueError."""
    if content_type.startswith("application/json"):
        arguments = json.loads(body or "{}")
        if not isinstance(arguments, dict):
            raise ValueError("no object")
        return arguments
    form: dict[str, Any] = {name: values[0] for name, values in parse_qs(body.decode()).items()}
    return {**form, "blocks": json.loads(form["blocks"])} if "blocks" in form else form


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
