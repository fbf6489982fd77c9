"""Which page is made by what, and what keeps a page from being whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from reference.commands import commands_page
from reference.errors import errors_page, wordless_codes
from reference.events import events_page, wordless_events
from reference.payload import payload_page, wordless_fields
from reference.public import python_page, unnamed_parameters
from reference.settings import settings_page, undescribed, unitless
from reference.sources import CHECKOUT

__all__ = ["PAGES", "problems", "stale"]

_DOCS: Final = CHECKOUT / "docs"

PAGES: Final[Mapping[Path, Callable[[], str]]] = {
    _DOCS / "settings.md": settings_page,
    _DOCS / "reference" / "commands.md": commands_page,
    _DOCS / "reference" / "errors.md": errors_page,
    _DOCS / "reference" / "events.md": events_page,
    _DOCS / "reference" / "payload.md": payload_page,
    _DOCS / "reference" / "python.md": python_page,
}


def stale() -> list[Path]:
    """Return the pages that are not as the code has them."""
    return [
        path
        for path, make in PAGES.items()
        if not path.exists() or path.read_text(encoding="utf-8") != make()
    ]


def problems() -> list[str]:
    """Return what has no words, and what has words and is not there, each with the file where the words belong."""
    found = {
        "reference/event_words.py": {name for names in wordless_events().values() for name in names},
        **{f"reference/codes.py ({what})": names for what, names in wordless_codes().items()},
        "reference/payload.py": wordless_fields(),
        "reference/settings.py (the unit of a number)": unitless(),
        "the description of a setting": undescribed(),
        "the docstring that has to name these parameters": {
            f"{name}: {', '.join(missing)}" for name, missing in unnamed_parameters().items()
        },
    }
    return [f"{place}: {', '.join(sorted(names))}" for place, names in found.items() if names]
