"""Charts as SVG: a few shapes, without a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Final

__all__ = ["bars", "columns", "line"]

_WIDTH: Final = 760
_LEFT: Final = 150  # the space for the names of horizontal bars
_PLOT: Final = (60, 66, 680, 240)  # x, y, width, height of charts with axes
_COLOURS: Final = ("#2563eb", "#94a3b8", "#d97706", "#be123c")
_TEXT: Final = "#1e293b"
_FAINT: Final = "#e2e8f0"

_STEPS: Final = {1: 5, 1.5: 3, 2: 4, 3: 3, 4: 4, 5: 5, 6: 3, 8: 4, 10: 5}


def _number(value: float) -> str:
    return f"{value:,.0f}"


def bars(title: str, values: Mapping[str, float], *, unit: str, best: str) -> str:
    """Return horizontal bars, one for each name; `best` has the first colour."""
    scale = (_WIDTH - _LEFT - 110) / max(values.values())
    shapes = []
    for place, (name, value) in enumerate(values.items()):
        y = 56 + place * 40
        colour = _COLOURS[0] if name == best else _COLOURS[1]
        shapes += [
            _text(_LEFT - 12, y + 19, name, anchor="end", bold=name == best),
            f'<rect x="{_LEFT}" y="{y}" width="{max(value * scale, 2):.1f}" height="28" rx="3" fill="{colour}"/>',
            _text(_LEFT + value * scale + 8, y + 19, f"{_number(value)} {unit}"),
        ]
    return _picture(title, shapes, height=70 + 40 * len(values))


def columns(title: str, groups: Mapping[str, Mapping[str, float]], *, unit: str, below: str) -> str:
    """Return columns, one for each series in each group; `below` labels the groups."""
    series = list(next(iter(groups.values())))
    axis = _Axis(max(value for group in groups.values() for value in group.values()))
    x, y, width, height = _PLOT
    shapes = [*axis.lines(unit)]
    step = width / len(groups)
    wide = step * 0.8 / len(series)
    for place, (group, values) in enumerate(groups.items()):
        left = x + place * step + step * 0.1
        shapes.append(_text(left + step * 0.4, y + height + 20, group, anchor="middle"))
        for number, name in enumerate(series):
            top = axis.y(values[name])
            shapes.append(
                f'<rect x="{left + number * wide:.1f}" y="{top:.1f}" width="{wide - 3:.1f}"'
                f' height="{y + height - top:.1f}" rx="2" fill="{_COLOURS[number]}"/>'
            )
            if len(groups) <= 6:
                label = _short(values[name])
                shapes.append(
                    _text(left + number * wide + wide / 2 - 1.5, top - 5, label, anchor="middle", size=11)
                )
    shapes.append(_text(x + width / 2, y + height + 42, below, anchor="middle", faint=True))
    if len(series) > 1:
        shapes += _legend(series, y + height + 64)
    return _picture(title, shapes, height=y + height + (84 if len(series) > 1 else 60))


@dataclass(frozen=True)
class _Axis:
    """The scale at the left, from 0 to a round number above `most`."""

    most: float

    @property
    def top(self) -> float:
        return self._size * self._factor

    @property
    def steps(self) -> int:
        """The number of parts of the scale, which end at round numbers."""
        return _STEPS[self._factor]

    @property
    def _size(self) -> float:
        return 10 ** int(log10(self.most)) if self.most >= 1 else 1

    @property
    def _factor(self) -> float:
        return next(factor for factor in _STEPS if self._size * factor >= self.most)

    def y(self, value: float) -> float:
        _, y, _, height = _PLOT
        return y + height * (1 - value / self.top)

    def lines(self, unit: str) -> list[str]:
        x, _, width, _ = _PLOT
        shapes = [_text(x - 8, 50, unit, anchor="end", faint=True, size=11)]
        for part in range(self.steps + 1):
            value = self.top * part / self.steps
            y = self.y(value)
            shapes.append(f'<line x1="{x}" y1="{y:.1f}" x2="{x + width}" y2="{y:.1f}" stroke="{_FAINT}"/>')
            shapes.append(_text(x - 8, y + 4, _short(value), anchor="end", faint=True, size=11))
        return shapes


def line(title: str, points: Mapping[str, float], *, unit: str, below: str, limit: float) -> str:
    """Return one line through points at equal distances, and a dashed one at `limit`."""
    axis = _Axis(max(*points.values(), limit))
    x, y, width, height = _PLOT
    step = width / len(points)
    places = [(x + step * (number + 0.5), axis.y(value)) for number, value in enumerate(points.values())]
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    at = axis.y(limit)
    shapes = [
        *axis.lines(unit),
        f'<path d="M{x} {at:.1f}h{width}" stroke="{_COLOURS[3]}" stroke-dasharray="6 4"/>',
        f'<polyline points="{path}" fill="none" stroke="{_COLOURS[0]}" stroke-width="2.5"/>',
    ]
    for (left, top), (name, value) in zip(places, points.items(), strict=True):
        shapes.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5" fill="{_COLOURS[0]}"/>')
        shapes.append(_text(left, top - 11, _short(value), anchor="middle", size=12))
        shapes.append(_text(left, y + height + 20, name, anchor="middle"))
    shapes.append(_text(x + width / 2, y + height + 42, below, anchor="middle", faint=True))
    return _picture(title, shapes, height=y + height + 60)


def _legend(series: Sequence[str], y: float) -> list[str]:
    shapes = []
    for number, name in enumerate(series):
        x = _PLOT[0] + 150 * number
        shapes.append(f'<rect x="{x}" y="{y - 11}" width="13" height="13" rx="2" fill="{_COLOURS[number]}"/>')
        shapes.append(_text(x + 20, y, name))
    return shapes


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    if value >= 1_000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value == int(value) or value >= 10 else f"{value:.1f}"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    bold: bool = False,
    faint: bool = False,
    size: int = 13,
) -> str:
    colour = "#64748b" if faint else _TEXT
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )


def _picture(title: str, shapes: Sequence[str], *, height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}"'
        f' height="{height:.0f}" font-family="system-ui, sans-serif" role="img" aria-label="{escape(title)}">'
    )
    paper = f'<rect width="{_WIDTH}" height="{height:.0f}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, paper, _text(20, 28, title, bold=True, size=15), *shapes, "</svg>\n"])
