"""docs/reference/events.md: the events of the log, from the calls of the loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reference.event_words import FIELDS, LISTENER, WORKERS
from reference.sources import Event, events
from reference.text import page, table

__all__ = ["events_page", "wordless_events"]

_LEVELS = ("debug", "info", "warning", "error", "critical")
_PARTS = {"The listener": ("listener", LISTENER), "The workers": ("cdc_tasks", WORKERS)}

_HEAD = """
With `CDC_LOG_FORMAT=json` each line is an object: `event`, `level`, `timestamp`, and the fields below. A line may lack
a field that does not apply. Rely on the event and its fields. The values of `reason`, `error`, `found` and `hint` are
texts for people, and may change.

Lines of the standard library's loggers are not events: those of Celery, kombu and our Redis transport
(`cdc_tasks.broker.redis…`), which logs like kombu. In JSON they are objects, too, but their `event` is a sentence that
may change.
"""

_NOTES = {
    "The workers": "Flower, `python -m cdc_tasks` and every other process that sends our tasks may log some of these, too."
}


def events_page() -> str:
    """Return the page."""
    return page("Log events", _HEAD, *_parts())


def _parts() -> Iterator[str]:
    yield table(("field", "meaning"), [(f"`{name}`", words) for name, words in FIELDS.items()])
    for title, (package, words) in _PARTS.items():
        yield f"## {title}"
        yield _NOTES.get(title, "")
        logged = events(package)
        for group, meanings in words.items():
            yield f"### {title}: {group}"
            yield table(("event", "level", "when", "fields"), _rows(meanings, logged))


def _rows(meanings: Mapping[str, str], logged: Mapping[str, Event]) -> Iterator[tuple[str, ...]]:
    for name, meaning in meanings.items():
        event = logged[name]
        levels = ", ".join(level for level in _LEVELS if level in event.levels)
        yield f"`{name}`", levels, meaning, ", ".join(f"`{key}`" for key in sorted(event.keys))


def wordless_events() -> dict[str, set[str]]:
    """Return, by package, the events that are logged and have no words, and those that have words and are not logged."""
    found = {}
    for package, words in _PARTS.values():
        named = {name for meanings in words.values() for name in meanings}
        found[package] = named ^ events(package).keys()
    return found
