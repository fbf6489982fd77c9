"""The site of the documentation, as a reader meets it in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from harness.waiting import wait_until
from tests.support.browser import Browser

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT = Path(__file__).resolve().parents[2]
_CONFIGURATION = yaml.safe_load((_CHECKOUT / "mkdocs.yml").read_text())
_SEARCH = """
const [words] = arguments;
const roots = [document, ...[...document.querySelectorAll('*')].map((each) => each.shadowRoot).filter(Boolean)];
const find = (selector) => roots.flatMap((root) => [...root.querySelectorAll(selector)]);
const [field] = find('input[placeholder]');
if (!field) { document.querySelector('.md-search__button').click(); return []; }
if (field.value !== words) {
    field.value = words;
    field.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
}
return find('a[href]').map((each) => each.getAttribute('href'));
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of the site, which is made from a copy."""
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copy(_CHECKOUT / name, tmp_path)
    shutil.copytree(_CHECKOUT / "docs", tmp_path / "docs")
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    pages = tmp_path / _CONFIGURATION["site_dir"]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(pages))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_each_page_is_in_the_navigation() -> None:
    def pages(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        else:
            for each in part.values() if isinstance(part, dict) else part:
                yield from pages(each)

    named = list(pages(_CONFIGURATION["nav"]))

    docs = _CHECKOUT / "docs"
    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


def test_it_is_read_on_a_telephone_and_searched_without_a_network(site: str) -> None:
    with Browser() as browser:
        browser.resize(390, 844)
        for page in ("settings", "reference", "compare", "index"):
            browser.open(f"{site}/{page}.html")
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), page
            assert browser.hosts <= {site.removeprefix("http://")}, page
            assert not browser.problems(), page
        wait_until(
            lambda: any(
                each.endswith("/replay.html#the-journal") for each in browser.run(_SEARCH, "journal")
            ),
            what="the page about the journal among what the search has found",
        )


_QUESTIONS = {
    "What is it, and how do I start?": "tutorial.md",
    "Is it for me?": "compare.md",
    "How do I start with Django?": "django.md",
    "What happens if Redis loses its data?": "how-to/redis-lost-its-data.md",
    "How do I rerun yesterday afternoon?": "how-to/rerun.md",
    "What does it cost my database?": "how-to/what-it-costs.md",
    "What do I do if the disk fills?": "how-to/disk-fills.md",
}


@pytest.mark.parametrize(("question", "page"), _QUESTIONS.items())
def test_what_a_stranger_asks_is_one_click_from_the_first_page(question: str, page: str) -> None:
    first = (_CHECKOUT / "docs" / "index.md").read_text()
    (row,) = [line for line in first.splitlines() if line.startswith(f"| {question} |")]
    assert f"]({page}" in row
    assert (_CHECKOUT / "docs" / page).exists()
