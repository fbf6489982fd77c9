"""Pictures of the console for docs/console.md, taken of the demo's programs with example data: `make screenshots`.

Each picture is the part of a page that answers one question. Run it in a checkout: it starts servers, and ends them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import redis
from pydantic import SecretStr

import cdc_tasks
from cdc_tasks import db
from cdc_tasks.notify import sealed_secrets
from demo import stack
from demo.steps import STEPS, TOKEN
from harness.waiting import wait_until
from tests.support.browser import Browser
from tests.support.small_png import reduced

if TYPE_CHECKING:
    from demo.stack import Stack

_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_PICTURES: Final = _CHECKOUT / "docs" / "images"
_LARGEST: Final = 60_000  # bytes
_SAMPLES: Final = "cdc:cdc_demo:console:samples"
_PART: Final = """
const boxes = [...arguments].flatMap((selector) => [...document.querySelectorAll(selector)])
  .filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect());
const top = Math.min(...boxes.map((box) => box.top)) + scrollY;
return [document.documentElement.clientWidth, top, Math.max(...boxes.map((box) => box.bottom)) + scrollY - top];
"""
# What is this machine's own, and would be another one's with the next run.
_NEUTRAL: Final = """
const [checkout] = arguments;
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const text = texts.currentNode;
  text.data = text.data.replaceAll(checkout, '');
}
document.querySelectorAll('.who').forEach((each) => { each.textContent = 'ops@host'; });
"""
_FAILURE: Final = "INSERT INTO tickets (title, priority, assigned_to_id) VALUES ('Screen is dark', 'Low', 3)"


class Picture(NamedTuple):
    """A part of a page."""

    name: str
    path: str
    words: str  # for which the page is asked again
    parts: tuple[str, ...]  # CSS selectors: the picture has what lies between the first and the last of them
    scheme: str = "light"
    height: int = 620  # at most
    margin: int = 12
    width: int = 940


_ALL: Final = (
    Picture("working", "/", "listener", ("body > header", "dl.numbers")),
    Picture("working-dark", "/", "listener", ("body > header", "dl.numbers"), "dark"),
    Picture(
        "behind", "/?hours=1", "How far behind", ("svg.graph", "main > h2:has(+ svg.graph)", "svg.graph + p")
    ),
    Picture(
        "came-last", "/changes", "Screen is dark", ("body > header", "main table"), height=640, width=1200
    ),
    Picture("why-not", "/changes?table=tickets&row=1", "closed", ("main h1", "main table tr:nth-child(2)")),
    Picture("messages", "/messages", "Anna", ("body > header", "main table"), height=640),
    Picture("failed", "/failing", "invalid_auth", ("body > header", "#letters", "#letters ~ form")),
)


def main() -> None:
    """Take all pictures."""
    _PICTURES.mkdir(exist_ok=True)
    with stack.started(lambda what: _say(f"Starting {what}")) as running, Browser() as browser:
        _play(running)
        for picture in _ALL:
            _write(picture.name, _taken(browser, running.console.url, picture))
        _write("sql-box", _of_the_box(browser, running))


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")


def _play(running: Stack) -> None:
    """Let happen what the pictures show."""
    engine = db.engine()
    _note_an_hour()
    for step in STEPS:
        token = running.sample.sealed_token()
        statements = [each.strip().replace(TOKEN, token) for each in step.sql.split(";")]
        running.sample.execute(*(each for each in statements if each not in {"", "BEGIN", "COMMIT"}))
        time.sleep(1)
    revoked = sealed_secrets.seal(SecretStr("revoked"))
    running.sample.execute(
        f"INSERT INTO connected_accounts (user_id, service, secret) VALUES (3, 'slack', '{revoked}')"
    )
    running.sample.execute(_FAILURE)
    with engine.begin() as connection:
        cdc_tasks.context(connection, user_id=1, request="5f1c")
        connection.exec_driver_sql(
            "UPDATE tickets SET status = 'closed', description = 'Put out' WHERE id = 1"
        )
    running.sample.execute("UPDATE tickets SET description = 'It was the toner' WHERE id = 1")
    wait_until(
        lambda: "invalid_auth" in running.log_ends or _letters(running), timeout=60, what="the failure"
    )


def _letters(running: Stack) -> int:
    with redis.Redis.from_url(running.addresses.cache) as cache:
        return int(cache.hlen("cdc:dead-letters"))


def _note_an_hour() -> None:
    """Write an hour of the graph: a quiet system, with a listener that was away for two minutes."""
    from cdc_tasks.settings import worker_settings

    now = time.time()
    with redis.Redis.from_url(worker_settings().celery_broker_url.get_secret_value()) as broker:
        for at in range(int(now) - 3_600, int(now), 10):
            ago = now - at
            away = 1_500 < ago < 1_620
            behind = (
                1_620 - ago if away else max(0.0, 120 - (1_500 - ago) * 2) if 1_440 < ago <= 1_500 else 0.05
            )
            broker.rpush(_SAMPLES, json.dumps([at, behind, int(behind * 900), 80_000, not away]))


def _taken(browser: Browser, url: str, picture: Picture) -> bytes:
    browser.prefer("dark" if picture.scheme == "dark" else "light")
    browser.resize(picture.width, 900)

    def shown() -> bool:
        browser.open(f"{url}{picture.path}")
        return picture.words in browser.text

    wait_until(shown, timeout=60, every=0.5, what=f"{picture.words!r} on {picture.path}")
    browser.run(_NEUTRAL, f"{_CHECKOUT}/")
    return _part(browser, picture.parts, picture.height, picture.margin)


def _part(browser: Browser, parts: tuple[str, ...], height: int, margin: int) -> bytes:
    width, top, tall = browser.run(_PART, *parts)
    above = min(top, margin)
    return browser.picture(0, top - above, width, min(tall + above + margin, height))


def _of_the_box(browser: Browser, running: Stack) -> bytes:
    browser.prefer("light")
    browser.resize(1200, 900)
    browser.open(running.box.url)
    wait_until(lambda: "Close a ticket" in browser.text, timeout=20, what="the examples")
    browser.run(
        "[...document.querySelectorAll('#examples button')]"
        ".find((each) => each.innerText === 'Close a ticket').click();"
        "document.querySelector('form button').click()"
    )
    wait_until(lambda: browser.text.count("SUCCESS") >= 2, timeout=30, what="what comes of it")
    browser.run(_NEUTRAL, f"{_CHECKOUT}/")
    browser.run("document.activeElement.blur()")
    return _part(browser, ("body > header", ".effects"), 760, 12)


def _write(name: str, picture: bytes) -> None:
    small = reduced(picture)
    _say(f"{name}.png: {len(small):,} bytes, of {len(picture):,}")
    if len(small) > _LARGEST:
        sys.exit(f"{name}.png has more than {_LARGEST:,} bytes: show less of the page.")
    (_PICTURES / f"{name}.png").write_bytes(small)


if __name__ == "__main__":
    main()
