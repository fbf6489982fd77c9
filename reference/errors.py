"""docs/reference/errors.md: codes of errors, of findings of `check`, and of alarms of `status`."""

from __future__ import annotations

from collections.abc import Iterator

from reference.codes import ALARMS, CURES, ENDS, ERRORS, FINDINGS, WAITS
from reference.sources import alarm_codes, class_words, error_codes, finding_codes, hints
from reference.text import escaped, page, table

__all__ = ["errors_page", "wordless_codes"]

_HEAD = """
A code is for programs, and never changes. Any version may add codes. Texts may change.

| where | what has the code |
| --- | --- |
| Python | `error.code` of each `cdc_tasks.CDCError` |
| `--json` of a command | an object with `code`, `message` and `hint` on standard output |
| `python -m listener check --json` | each finding: `what`, `state`, `code`, `found`, `hint` |
| `python -m listener status --json` | `alarm_codes`; `alarms` has the same as texts, in the same order |
| the log | the field `code`, for example of [`failed`](events.md) |

A dead letter and the event `task_gave_up` have the name of the error's class instead.

**Exit status.** A command that fails ends with 1, and prints the message and the hint. Wrong options end it with 2.
The listener ends with 1 only for the codes that are marked so below. Its last log line is then `failed`; with
`CDC_LOG_FORMAT=text` it prints an error in the settings or the routes as `check` does. If a table or MySQL's variables
have a problem, it does not start: `failed` has the problem's code, or `source` if there are several codes.

In a hint, `…` stands for a value that is known only when it happens: a name, a number, a statement.
"""

_ALARMS = """
With an alarm, the exit status of `python -m listener status` is 1 or 3: see [operating](../operating.md#watch).
"""


def errors_page() -> str:
    """Return the page."""
    return page("Errors, findings, alarms: the codes", _HEAD, *_alarms(), *_sections())


def _alarms() -> Iterator[str]:
    yield "## Alarm codes"
    yield _ALARMS
    yield table(("code", "meaning"), [(f"`{code}`", meaning) for code, meaning in ALARMS.items()])


def _sections() -> Iterator[str]:
    words, given, errors = class_words() | ERRORS, hints(), error_codes()
    yield "## Error codes and finding codes"
    for code in sorted(errors | FINDINGS.keys()):
        yield f"### `{code}`"
        yield "\n".join(_lines(code, words[code] if code in errors else "", given.get(code, [])))


def _lines(code: str, meaning: str, given: list[str]) -> Iterator[str]:
    if meaning:
        yield f"{meaning if '`' in meaning else escaped(meaning)}\n"
    if code in FINDINGS:
        what, states = FINDINGS[code]
        yield f"- `check` ({states}): {what}."
    if code in ENDS:
        yield "- The listener ends with status 1."
    elif code in WAITS:
        yield "- The listener waits, and retries."
    if code in CURES:
        yield f"- Fix: {CURES[code]}"
    for hint in given:
        yield f"- Hint: {'<br>'.join(escaped(line.strip()) for line in hint.splitlines())}"


def wordless_codes() -> dict[str, set[str]]:
    """Return the codes that lack words or a cure, and those that have words and are given nowhere."""
    errors, findings = error_codes(), finding_codes()
    states = {code for code, (_, states) in FINDINGS.items() if states != "ok"}
    return {
        "errors": errors ^ (class_words().keys() | ERRORS.keys()) & errors | ERRORS.keys() - errors,
        "findings": findings ^ FINDINGS.keys(),
        "alarms": alarm_codes() ^ ALARMS.keys(),
        "cures": (errors | states) - hints().keys() - CURES.keys(),
        "needless": (CURES.keys() | ENDS | WAITS) - errors - findings,
    }
