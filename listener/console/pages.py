"""The pages of the console, and the actions of their forms."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from cdc_tasks.dead_letters import store as dead_letters
from cdc_tasks.errors import CDCError
from listener.console.access import Access, Guard, Person
from listener.console.actions import Actions, Done
from listener.console.changes import ChangePages
from listener.console.facts import MOST, Facts, health
from listener.console.messages import MessagePages, has_messages
from listener.console.rates import rates_of
from listener.console.samples import Sample, Samples, graph_of
from listener.console.tasks import TaskPages, place_of, place_of_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from cdc_tasks.record import Outcome
    from listener.console.settings import ConsoleSettings
    from listener.daemon.settings import ListenerSettings

__all__ = ["make_console"]

_HERE: Final = Path(__file__).parent
_HOURS: Final = (1.0, 6.0, 24.0)
_VIEWS: Final = (
    ("overview", "Overview", "/"),
    ("changes", "Changes", "/changes"),
    ("routes", "Routes", "/routes"),
    ("failing", "Failing", "/failing"),
    ("messages", "Messages", "/messages"),
    ("queues", "Queues and cache", "/queues"),
    ("backfills", "Backfills", "/backfills"),
    ("record", "Record", "/record"),
)

Page = Callable[["Request", Person], tuple[str, Mapping[str, Any]]]


class _Console:
    """The common parts of all pages."""

    def __init__(self, settings: ListenerSettings, console: ConsoleSettings) -> None:
        self._settings = settings
        self._console = console
        self.access = Access(console)
        self.facts = Facts(settings)
        self.samples = Samples(settings, self.facts)
        self._changes = ChangePages(settings, self.facts)
        self._tasks = TaskPages(settings, self.facts)
        self._messages = MessagePages(self.facts)
        self._actions = Actions(settings, self.facts)
        self._templates = Jinja2Templates(directory=_HERE / "templates")
        self._templates.env.filters.update(ago=_ago, ahead=_ahead, size=_size, seconds=_seconds, rate=_rate)

    def page(self, make: Page) -> Callable[[Request], Any]:
        """Return an endpoint that shows a page to permitted viewers."""

        async def endpoint(request: Request) -> Response:
            person = self.access.person(request)
            if person is None:
                return RedirectResponse("/login", status_code=303)
            try:
                name, values = await run_in_threadpool(self._made, make, request, person)
            except CDCError as error:
                name, values = "error.html", {"error": error.message, "hint": error.hint}
            return self._shown(request, name, values, person)

        return endpoint

    def _made(self, make: Page, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        name, values = make(request, person)
        return name, {**values, "views": [each for each in _VIEWS if self._is_for_us(each[0])]}

    def _is_for_us(self, view: str) -> bool:
        return view != "messages" or has_messages(self.facts)

    def _shown(
        self, request: Request, name: str, values: Mapping[str, Any], person: Person | None, status: int = 200
    ) -> Response:
        common = {
            "views": _VIEWS,
            "person": person,
            "may_act": person is not None and person.may_act,
            "token": self.access.token(request),
            "told": request.session.pop("told", None),
            "listener": self._settings.cdc_name,
            "flower": self._console.cdc_flower_url,
            "has_door": self._console.cdc_console_password is not None,
            "most": MOST,
        }
        return self._templates.TemplateResponse(request, name, {**common, **values}, status_code=status)

    def overview(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        hours, samples = _chosen_hours(request), list[Sample]()
        status, letters, keys = self.facts.status(), self.facts.letter_counts(), self.facts.key_count()
        with suppress(CDCError):  # the page reports the same unavailable Redis
            samples = self.samples.read(hours)
        return "overview.html", {
            "view": "overview",
            "status": status,
            "health": health(status, sum((letters.value or {}).values()), keys.value or 0),
            "letters": letters,
            "keys": keys,
            "control": self.facts.control(),
            "graph": graph_of(samples, hours, time()),
            "rates": rates_of(self.facts.rates().value or ()),
            "described": self.facts.descriptions(),
            "all_hours": _HOURS,
        }

    def changes(self, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        return "changes.html", {"view": "changes", **self._changes.shown(request, may_see=person.may_act)}

    def routes(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "routes.html", {
            "view": "routes",
            "routes": self.facts.routes(),
            "control": self.facts.control(),
            "start": _start(request),
            "is_counted": rates_of(self.facts.rates().value or ()).is_counted,
        }

    def replay(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "replay.html", {
            **self._chosen_route(request),
            "zone": datetime.now().astimezone().tzname(),
            "has_journal": self._settings.cdc_journal is not None,
        }

    def backfill(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "backfill.html", self._chosen_route(request)

    def _chosen_route(self, request: Request) -> Mapping[str, Any]:
        described = self.facts.described_route(request.path_params["id"])
        return {"view": "routes", "d": described, "has_pattern": bool(set("*?[") & set(described["table"]))}

    def failing(self, _request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "failing.html", {
            "view": "failing",
            "parked": self.facts.parked(),
            "letters": self.facts.letters(),
            "letter_counts": self.facts.letter_counts(),
            "keys": self.facts.keys(),
        }

    def task(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "task.html", {"view": "", **self._tasks.shown(request.path_params["id"])}

    def parked(self, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        found = self.facts.parked_change(request.path_params["id"])
        change = found.shown_change() if person.may_act else None
        return "parked.html", {"view": "failing", "parked": found, "change": change}

    def letter(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "letter.html", {"view": "failing", "letter": dead_letters.get(request.path_params["id"])}

    def messages(self, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        return "messages.html", {"view": "messages", **self._messages.shown(request, may_see=person.may_act)}

    def message(self, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        return "message.html", {"view": "messages", **self._messages.one(request, may_see=person.may_act)}

    def queues(self, request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "queues.html", {
            "view": "queues",
            "queues": self.facts.queues(),
            "start": _start(request),
            "cached": self.facts.cached(),
        }

    def backfills(self, _request: Request, _person: Person) -> tuple[str, Mapping[str, Any]]:
        return "backfills.html", {
            "view": "backfills",
            "backfills": self.facts.backfills(),
            "replays": self.facts.replays(),
            "routes": self.facts.routes(),
            "status": self.facts.status(),
        }

    def record(self, request: Request, person: Person) -> tuple[str, Mapping[str, Any]]:
        asked = {name: request.query_params.get(name, "").strip() for name in ("who", "what")}
        part = self.facts.record()
        verbs = sorted({each.command.verb for each in part.value or ()})
        return "record.html", {
            "view": "record",
            "record": part,
            "found": [
                each for each in part.value or () if _is_asked_for(each, asked, may_see=person.may_act)
            ],
            "asked": asked,
            "verbs": verbs,
        }

    async def find(self, request: Request) -> Response:
        """Redirect to the page for the text in the search field."""
        if self.access.person(request) is None:
            return RedirectResponse("/login", status_code=303)
        words = request.query_params.get("q", "").strip()[:300]
        try:
            place = await run_in_threadpool(place_of, words, self.facts)
        except CDCError:  # the routes cannot be loaded: no tables are known
            place = place_of_id(words)
        return RedirectResponse(place, status_code=303)

    async def login(self, request: Request) -> Response:
        """Show the form, or process it."""
        if request.method == "GET":
            return self._shown(request, "login.html", {}, None)
        form = await request.form()
        self.access.check_form(request, form)
        name = str(form.get("name", "")).strip()
        person = self.access.enter(request, name, str(form.get("password", ""))) if name else None
        if person is None:
            wrong = "That is not the password." if name else "Say who you are: the record names you."
            return self._shown(request, "login.html", {"wrong": wrong, "name": name}, None, status=403)
        return RedirectResponse("/", status_code=303)

    async def logout(self, request: Request) -> Response:
        self.access.check_form(request, await request.form())
        self.access.leave(request)
        return RedirectResponse("/login", status_code=303)

    async def act(self, request: Request) -> Response:
        """Run the action of a form, and return to its page."""
        person = self.access.person(request)
        form = await request.form()
        self.access.check_form(request, form)
        if person is None or not person.may_act:
            raise HTTPException(403, "You may look, and not act.")
        try:
            done = await run_in_threadpool(self._actions.do, request.path_params["verb"], form, person.name)
        except CDCError as error:
            done = Done(f"{error.message} {error.hint or ''}".strip(), went_well=False)
        # A cookie holds it until the next page.
        request.session["told"] = {"words": done.words[:1500], "went_well": done.went_well}
        back = str(form.get("back", "/"))
        return RedirectResponse(
            back if back.startswith("/") and not back.startswith("//") else "/", status_code=303
        )

    async def failed(self, request: Request, error: Exception) -> Response:
        """Show an HTTP error as a page."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else "The console has failed: see its log."
        values = {"error": "There is no such page." if status == 404 else detail, "hint": None}
        return self._shown(request, "error.html", values, self.access.person(request), status=status)


def _start(request: Request) -> int:
    """Return the first line of a long table to show."""
    given = request.query_params.get("from", "")
    return int(given) if given.isdecimal() and len(given) < 9 else 0


def _is_asked_for(outcome: Outcome, asked: Mapping[str, str], *, may_see: bool) -> bool:
    """Return whether an entry of the record matches the person and the command or subject."""
    command, what = outcome.command, asked["what"].lower()
    told = [command.verb, command.verb.replace("_", " ")]
    if may_see or command.verb != "key_skip":
        told += map(str, command.arguments.values())
    return asked["who"].lower() in command.who.lower() and any(what in each.lower() for each in told)


def _chosen_hours(request: Request) -> float:
    given = request.query_params.get("hours", "")
    return float(given) if given in {f"{each:g}" for each in _HOURS} else _HOURS[1]


def make_console(settings: ListenerSettings, console: ConsoleSettings) -> Starlette:
    """Return the console as an ASGI application."""
    ours = _Console(settings, console)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        ours.samples.start()
        yield
        await run_in_threadpool(ours.samples.stop)
        await run_in_threadpool(ours.facts.close)

    pages = {
        "/": ours.overview,
        "/changes": ours.changes,
        "/routes": ours.routes,
        "/routes/{id}/replay": ours.replay,
        "/routes/{id}/backfill": ours.backfill,
        "/failing": ours.failing,
        "/failing/parked/{id}": ours.parked,
        "/failing/letters/{id}": ours.letter,
        "/tasks/{id:path}": ours.task,
        "/messages": ours.messages,
        "/messages/{id}": ours.message,
        "/queues": ours.queues,
        "/backfills": ours.backfills,
        "/record": ours.record,
    }
    return Starlette(
        routes=[
            *(Route(path, ours.page(make)) for path, make in pages.items()),
            Route("/find", ours.find),
            Route("/login", ours.login, methods=["GET", "POST"]),
            Route("/logout", ours.logout, methods=["POST"]),
            Route("/act/{verb}", ours.act, methods=["POST"]),
            Route("/livez", lambda _request: PlainTextResponse("ok\n")),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ],
        middleware=[
            Middleware(Guard, hosts=console.hosts),
            Middleware(
                SessionMiddleware,
                secret_key=secrets.token_urlsafe(32),
                session_cookie="cdc_console",
                same_site="strict",
                max_age=12 * 3600,
            ),
        ],
        exception_handlers={HTTPException: ours.failed, 500: ours.failed},
        lifespan=lifespan,
    )


def _ago(moment: str | datetime | None) -> str:
    """Return how long ago it was, as text."""
    if moment is None:
        return ""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return f"{_seconds((datetime.now(UTC) - at).total_seconds())} ago"


def _ahead(moment: datetime) -> str:
    """Return the time until then, as text."""
    seconds = (moment - datetime.now(UTC)).total_seconds()
    return f"in {_seconds(seconds)}" if seconds > 0 else "now"


def _rate(number: float | None) -> str:
    """Return a rate per second: 0, 0.3, 12, 1,250."""
    if number is None:
        return "not known"
    return f"{number:,.0f}" if number >= 10 or not number else f"{number:.1f}" if number >= 0.1 else "< 0.1"


def _seconds(seconds: float | None) -> str:
    """Return a duration as text: 0.2 s, 3 min, 2:05:00."""
    if seconds is None:
        return "not known"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return str(timedelta(seconds=round(seconds)))


def _size(number: int | None) -> str:
    """Return a number of bytes as text."""
    if number is None:
        return "not known"
    size = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError  # the last unit returns
