"""The demo's SQL box: a page on which a person runs SQL and sees its effects, up to the message."""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import sqlalchemy

from cdc_tasks.errors import CDCError
from demo.page_server import PageHandler, PageServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

    from demo.effects import Effects
    from demo.statements import Statements

__all__ = ["Example", "SqlBox"]

_FILES: Final = {
    "/": ("sql_box.html", "text/html"),
    "/sql_box.js": ("sql_box.js", "text/javascript"),
    "/sql_box.css": ("sql_box.css", "text/css"),
}
_OPEN_TICKET: Final = "SELECT max(id) FROM tickets WHERE status <> 'closed'"
_INSERT: Final = "INSERT INTO tickets (title, priority, assigned_to_id) VALUES ('Screen is dark', 'High', 2);"
_EXAMPLES: Final = (  # TICKET: an existing one
    ("Insert a ticket", _INSERT),
    ("Close a ticket", "UPDATE tickets SET status = 'closed' WHERE id = TICKET;"),
    (
        "Three tickets in one statement",
        "INSERT INTO tickets (title, assigned_to_id) VALUES ('No network', 2), ('No sound', 2), ('No coffee', 2);",
    ),
    ("Roll back", f"BEGIN;\n{_INSERT}\nROLLBACK;"),
    ("A change that fires nothing", "UPDATE tickets SET description = 'It is dark' WHERE id = TICKET;"),
    ("Refresh the cache", "INSERT INTO departments (name) VALUES ('Night shift');"),
    ("Look", "SELECT id, title, status, priority, assigned_to_id FROM tickets ORDER BY id DESC;"),
)


class Example(NamedTuple):
    """SQL that a click writes into the box."""

    label: str
    sql: str


class SqlBox(PageServer):
    """The page, for this machine only. It runs any SQL, so it refuses requests from other pages."""

    def __init__(
        self, statements: Statements, effects: Effects, engine: Engine, links: Mapping[str, str]
    ) -> None:
        """`links`: the other pages of the demo, by their names."""
        super().__init__(_Handler)
        self.statements = statements
        self.effects = effects
        self.links = links
        self.token = secrets.token_urlsafe(24)
        self._engine = engine

    @property
    def hosts(self) -> frozenset[str]:
        """The allowed Host headers: another name could be a foreign page's name that resolves to this machine."""
        return frozenset(f"{name}:{self.port}" for name in ("127.0.0.1", "localhost"))

    def examples(self) -> Sequence[Example]:
        """Return the examples, which name an existing ticket."""
        with self._engine.connect() as connection:
            ticket = connection.execute(sqlalchemy.text(_OPEN_TICKET)).scalar()
        return [Example(label, sql.replace("TICKET", str(ticket or 1))) for label, sql in _EXAMPLES]

    def run(self, sql: str) -> dict[str, Any]:
        """Run it; return the number of the run, and the database's answer."""
        run = self.effects.begin()
        return {"run": run, **asdict(self.statements.run(sql))}


class _Handler(PageHandler):
    owner: SqlBox
    policy = "default-src 'self'; img-src data:; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"

    def do_GET(self) -> None:  # noqa: N802 - http.server calls it
        if not self._is_ours():
            return
        url = urlsplit(self.path)
        if url.path in _FILES:
            self._send_file(*_FILES[url.path])
        elif url.path == "/examples":
            self._told(lambda: [each._asdict() for each in self.owner.examples()])
        elif url.path == "/effects":
            run = parse_qs(url.query).get("run", [""])[0]
            self._told(lambda: self.owner.effects.of(int(run)))
        else:
            self.answer(404, b"Not found\n", "text/plain")

    def do_POST(self) -> None:  # noqa: N802 - the same
        body = self.body()
        if body is None or not self._is_ours():
            return
        given = self.headers.get("X-Token", "")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        if not hmac.compare_digest(given.encode(), self.owner.token.encode()) or site != "same-origin":
            self.answer(403, b"This request is not from the demo's page. Reload the page.\n", "text/plain")
        elif urlsplit(self.path).path != "/run":
            self.answer(404, b"Not found\n", "text/plain")
        else:
            self._told(lambda: self.owner.run(str(json.loads(body)["sql"])))

    def _is_ours(self) -> bool:
        """Return whether the name is the page's; if not, answer."""
        if self.headers.get("Host", "").lower() in self.owner.hosts:
            return True
        self.answer(
            421, b"This is not the demo's address. Open the address that the demo prints.\n", "text/plain"
        )
        return False

    def _send_file(self, name: str, kind: str) -> None:
        content = files(__package__).joinpath(name).read_text()
        if kind == "text/html":
            links = "\n".join(f'<a href="{url}">{words}</a>' for words, url in self.owner.links.items())
            content = content.replace("{token}", self.owner.token).replace("{links}", links)
            content = content.replace("{console}", self.owner.links["Console"])
            content = content.replace("{flower}", self.owner.links["Flower"])
        self.answer(200, content.encode(), kind)

    def _told(self, make: Any) -> None:
        try:
            self.answer_json(200, make())
        except CDCError as error:
            self.answer_json(503, {"error": f"{error.message} {error.hint or ''}".strip()})
        except (ValueError, LookupError, TypeError):
            self.answer(400, b"No such run, or no SQL\n", "text/plain")
        except sqlalchemy.exc.DBAPIError as error:
            self.answer_json(503, {"error": f"The database did not answer: {error.orig}".strip()})
