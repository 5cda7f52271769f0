"""The rows as a picture: how many times better than Node each server is, as SVG that needs nothing to be drawn."""

from __future__ import annotations

import math
from html import escape

from tests.bench.report import Report, Row
from tests.bench.servers import BARE, CENTRIFUGE, HUB, NODE, STOCK, TITLES

# Told apart in grey as well; the hub's is the dark one.
_COLOURS = {HUB: "#1f4e9c", STOCK: "#c2504b", BARE: "#9a9a9a", CENTRIFUGE: "#5aa469"}
_LEFT, _RIGHT, _TOP, _BAR, _GAP = 330, 70, 64, 11, 12
_WIDTH = 960
# Beyond these the bars are cut.
_LEAST, _MOST = 1 / 32, 64


def svg(report: Report) -> str:
    rows = [(each, _bars(each)) for each in report.rows if each.node]
    height = _TOP + sum(len(bars) * _BAR + _GAP for _, bars in rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="22" font-size="15" fill="#222222">Times better than Node’s Socket.IO (Node = 1)</text>',
        *_legend(),
        *_axis(height),
    ]
    y = float(_TOP)
    for each, bars in rows:
        parts += _group(each, bars, y)
        y += len(bars) * _BAR + _GAP
    note = f"{report.machine.cpu}, one core a server, medians. Right is better, also where less is better."
    parts.append(f'<text x="12" y="{height - 12}" fill="#666666">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bars(each: Row) -> list[tuple[str, float]]:
    bars = []
    for name in _COLOURS:
        value = getattr(each, name)
        if value and each.node:
            bars.append((name, value / each.node if each.better == "more" else each.node / value))
    return bars


def _x(ratio: float) -> float:
    span = _WIDTH - _LEFT - _RIGHT
    at = math.log(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return _LEFT + span * at


def _legend() -> list[str]:
    parts, x = [], float(_LEFT)
    for name, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="43" fill="#222222">{escape(TITLES[name])}</text>')
        x += 40 + 6.2 * len(TITLES[name])
    return parts


def _axis(height: int) -> list[str]:
    parts, ratio = [], _LEAST
    while ratio <= _MOST:
        x, label = _x(ratio), f"{ratio:g}" if ratio >= 1 else f"1/{1 / ratio:g}"
        colour = "#222222" if ratio == 1 else "#e2e2e2"
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 4}" x2="{x:.1f}" y2="{height - 38}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 26}" text-anchor="middle" fill="#666666">{label}</text>')
        ratio *= 2
    return parts


def _group(each: Row, bars: list[tuple[str, float]], top: float) -> list[str]:
    middle = top + len(bars) * _BAR / 2 + 4
    label = f"{each.name} ({each.unit})"
    parts = [f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end" fill="#222222">{escape(label)}</text>']
    for number, (name, ratio) in enumerate(bars):
        y, one, end = top + number * _BAR, _x(1), _x(ratio)
        left, width = min(one, end), max(abs(end - one), 1.0)
        parts.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR - 2}" fill="{_COLOURS[name]}">'
            f"<title>{escape(TITLES[name])}: {ratio:.2f}</title></rect>"
        )
        anchor, at = ("start", end + 4) if ratio >= 1 else ("end", end - 4)
        parts.append(
            f'<text x="{at:.1f}" y="{y + 8:.1f}" font-size="9" text-anchor="{anchor}" fill="#444444">{ratio:.2f}</text>'
        )
    return parts


assert NODE not in _COLOURS
