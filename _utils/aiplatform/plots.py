"""The plots of the benchmark's report, as SVG that takes its colours from the page around it.

matplotlib draws them; it is part of the master's environment alone (``requirements/master.in``). Nothing is told by
colour only: kinds differ in their marks, and who holds a slot has its number in the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from io import StringIO
from typing import Any

from aiplatform import history, scoring
from aiplatform.errors import PlatformError

# Colours that stand for the page's own, by the name of its CSS variable: the SVG is written with the first and has the
# second put in their place. So one drawing fits a light page and a dark one.
_INK, _SOFT, _LINE, _BACK, _BAND = "#010101", "#020202", "#030303", "#040404", "#050505"
_KIND = {scoring.GENERAL: "#060606", scoring.CODING: "#070707"}
_BAD, _PART_1, _PART_2, _PART_3 = "#080808", "#090909", "#0a0a0a", "#0b0b0b"
VARIABLES = {
    _INK: "ink",
    _SOFT: "soft",
    _LINE: "line",
    _BACK: "back",
    _BAND: "band",
    _KIND[scoring.GENERAL]: "general",
    _KIND[scoring.CODING]: "coding",
    _BAD: "bad",
    _PART_1: "part-1",
    _PART_2: "part-2",
    _PART_3: "part-3",
}
_MARK = {scoring.GENERAL: "o", scoring.CODING: "s"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ai-platform",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}
_WIDTH = 9.6
# Beyond so many panels nobody looks; the table has them all.
_MOST_LINES = 12


@dataclass(frozen=True)
class Plot:
    """A drawing with what it is called and what it shows."""

    title: str
    caption: str
    svg: str


def available() -> bool:
    """Return whether matplotlib is in this Python."""
    return find_spec("matplotlib") is not None


def all_of(made: Mapping[str, Any]) -> dict[str, Plot]:
    """Return the plots of a report's document by name; none where nothing was measured, no history of one measurement.

    What could not be loaded has no figures to draw: it is in the tables, with the reason.

    Raises ``PlatformError`` where matplotlib is not there.
    """
    if not available():
        raise PlatformError(
            "No plots can be made", expected="matplotlib in Salt's Python", hint="etc/install-master.sh"
        )
    if not _ranked(made):
        return {}
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        drawn = {"choice": _choice(made), "speed": _speed(made), "parts": _parts(made)}
        return drawn | ({"history": _history(made)} if any(len(line) > 1 for line in made["history"].values()) else {})


# -- quality against speed ------------------------------------------------------------------------------------------


def _choice(made: Mapping[str, Any]) -> Plot:
    figure, axes = _figure(4.8)
    floors, ceiling = made["settings"]["thresholds"], made["settings"]["toks_norm_ceiling"]
    rows = dict(_ranked(made))
    slots = {slot["model"]: slot["number"] for slot in made["slots"] if slot["model"]}
    fastest = max(row["avg_tok_per_sec"] for row in rows.values())
    axes.set_xlim(0, max(fastest, floors["min_tokens_per_sec"]) * 1.22 or 1)
    lowest = min(floors["min_quality_score"], *(_quality(row) for row in rows.values()))
    axes.set_ylim(max(lowest - 0.12, -0.04), 1.06)
    _floors(axes, floors, ceiling)
    for name, row in rows.items():
        _mark(axes, row["avg_tok_per_sec"], _quality(row), row["category"], slots.get(name))
    # Those in slots first: they get the best places.
    names = sorted(rows, key=lambda name: (slots.get(name, len(slots) + 1), name))
    _names(axes, [(rows[name]["avg_tok_per_sec"], _quality(rows[name]), name) for name in names])
    axes.set(xlabel="tokens per second", ylabel="quality in the kind served")
    axes.grid(visible=True)
    for kind, mark in _MARK.items():
        axes.scatter([], [], s=90, marker=mark, color=_KIND[kind], label=f"{kind}, holds the slot in the mark")
        axes.scatter([], [], s=50, marker=mark, facecolor="none", edgecolor=_KIND[kind], label=f"{kind}, no slot")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    best = ", ".join(f"{model} in {number}" for model, number in sorted(slots.items(), key=lambda item: item[1]))
    caption = f"A mark for each model, with the number of the slot that it holds: {best or 'none holds any'}."
    return _svg(figure, "choice", "Quality against speed", caption)


def _floors(axes: Any, floors: Mapping[str, float], ceiling: float) -> None:
    """Shade what the floors leave out, and mark where more speed earns nothing more."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    slow, poor = floors["min_tokens_per_sec"], floors["min_quality_score"]
    axes.axvspan(0, slow, color=_BAND, linewidth=0)
    axes.fill_between([slow, right], bottom, poor, color=_BAND, linewidth=0)
    axes.annotate(f"below a floor: {slow:g} tokens per second, {poor:g} quality", (right, bottom), color=_SOFT,
                  ha="right", va="bottom", fontsize=9, xytext=(-6, 5), textcoords="offset points")  # fmt: skip
    if ceiling < right:
        axes.axvline(ceiling, color=_SOFT, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate("full mark for speed", (ceiling, 1.06), color=_SOFT, fontsize=9, va="top", xytext=(4, 0),
                      textcoords="offset points")  # fmt: skip


def _mark(axes: Any, x: float, y: float, kind: str, slot: int | None) -> None:
    if slot is None:
        axes.scatter([x], [y], s=50, marker=_MARK[kind], facecolor="none", edgecolor=_KIND[kind], linewidth=1.6)
        return
    axes.scatter([x], [y], s=210, marker=_MARK[kind], color=_KIND[kind], edgecolor=_BACK, linewidth=1.2, zorder=3)
    axes.annotate(
        str(slot), (x, y), ha="center", va="center_baseline", color=_BACK, fontsize=9, weight="bold", zorder=4
    )


def _names(axes: Any, marks: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its mark, where it covers neither a mark nor another name if there is such a place."""
    at = {name: axes.transData.transform((x, y)) for x, y, name in marks}
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in at.values()]
    frame = axes.get_window_extent().extents
    for x, y, name in marks:
        boxes = [_box(at[name], len(name), *place) for place in _PLACES]
        covered = [_outside(box, frame) + sum(_overlap(box, other) for other in taken) for box in boxes]
        chosen = covered.index(min(covered))
        side, across, up = _PLACES[chosen]
        taken.append(boxes[chosen])
        axes.annotate(name, (x, y), xytext=(across * _POINT, up * _POINT), textcoords="offset points", ha=side,
                      va="center", fontsize=9.5, zorder=5)  # fmt: skip


# Where a name may stand: its side that is at the mark, and how far away in pixels of 1/100 inch.
_PLACES = [("left", 15, 0), ("right", -15, 0), ("left", 8, 17), ("left", 8, -17), ("right", -8, 17), ("right", -8, -17)]
_POINT = 0.72
_LETTER, _LETTER_HEIGHT = 7.4, 16


def _box(mark: Sequence[float], letters: int, side: str, across: float, up: float) -> tuple[float, float, float, float]:
    wide = letters * _LETTER
    left = mark[0] + across - (wide if side == "right" else 0)
    bottom = mark[1] + up - _LETTER_HEIGHT / 2
    return (left, bottom, left + wide, bottom + _LETTER_HEIGHT)


def _outside(box: Sequence[float], frame: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)


def _quality(row: Mapping[str, Any]) -> float:
    return float(row[f"{row['category']}_quality"])


# -- first token and decode rate ------------------------------------------------------------------------------------


def _speed(made: Mapping[str, Any]) -> Plot:
    rows = _ranked(made)
    figure, (left, right) = _figure(1.5 + 0.36 * len(rows), columns=2, sharey=True)
    for place, (_, row) in enumerate(rows):
        measured, color = row["measured"], _KIND[row["category"]]
        _with_spread(left, place, measured, "ttft_ms", color, row["category"])
        _with_spread(right, place, measured, "tokens_per_second", color, row["category"])
        most = (measured.get("roofline") or {}).get("tokens_per_second")
        if most:
            right.plot([most, most], [place - 0.3, place + 0.3], color=_INK, linewidth=1.8)
    left.set(title="First token", xlabel="ms after the request, model loaded")
    right.set(title="Decoding", xlabel="tokens per second")
    _by_model(left, rows)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
    if any((row["measured"].get("roofline") or {}).get("tokens_per_second") for _, row in rows):
        right.plot([], [], color=_INK, marker="|", markersize=10, linestyle="none", label="what memory allows")
    _kinds(right)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    caption = "A mark is the median of the repeats, the bar goes from the lowest to the highest."
    return _svg(figure, "speed", "Time to the first token and decode rate", caption)


def _with_spread(axes: Any, place: int, measured: Mapping[str, Any], key: str, color: str, kind: str) -> None:
    value, ends = measured[key], (measured.get("spread") or {}).get(key)
    if ends:
        axes.plot(ends, [place, place], color=color, linewidth=11, alpha=0.5, solid_capstyle="butt")
    axes.plot([value], [place], marker=_MARK[kind], color=color, markersize=5.5)


# -- what the composite is made of ----------------------------------------------------------------------------------


def _parts(made: Mapping[str, Any]) -> Plot:
    rows = _ranked(made)
    figure, axes = _figure(1.4 + 0.36 * len(rows))
    slots = {slot["model"]: slot["number"] for slot in made["slots"] if slot["model"]}
    for place, (name, row) in enumerate(rows):
        shares = (
            ("quality", scoring.WEIGHT_QUALITY * _quality(row), _PART_1, ""),
            ("speed", scoring.WEIGHT_SPEED * row["toks_norm"], _PART_2, "//"),
            ("first token", scoring.WEIGHT_LATENCY * row["latency_score"], _PART_3, ".."),
        )
        start = 0.0
        for label, share, color, hatch in shares:
            axes.barh(place, share, left=start, height=0.62, color=color, hatch=hatch, edgecolor=_BACK, linewidth=0.8,
                      label=label if place == 0 else None)  # fmt: skip
            start += share
        held = f", slot {slots[name]}" if name in slots else ""
        axes.annotate(f"{start:.3f}{held}", (start, place), xytext=(5, 0), textcoords="offset points", va="center",
                      fontsize=9, bbox={"facecolor": _BACK, "edgecolor": "none", "pad": 1})  # fmt: skip
    least = made["settings"]["thresholds"]["min_composite_score"]
    axes.axvline(least, color=_INK, linestyle=(0, (4, 3)), linewidth=1, zorder=0.5)
    axes.annotate(f"warning below {least:g}", (least, len(rows) - 0.4), xytext=(4, 0), textcoords="offset points",
                  va="top", color=_SOFT, fontsize=9)  # fmt: skip
    axes.set(xlabel="composite in the kind served", xlim=(0, 1.08))
    _by_model(axes, rows)
    axes.grid(visible=True, axis="x")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    caption = "Quality, speed and first token, each times its weight, in the kind that the model serves."
    return _svg(figure, "parts", "What each composite is made of", caption)


# -- history --------------------------------------------------------------------------------------------------------


def _history(made: Mapping[str, Any]) -> Plot:
    lines = [(name, line) for name, line in made["history"].items() if len(line) > 1][:_MOST_LINES]
    columns = min(3, len(lines))
    height = -(-len(lines) // columns)
    figure, grid = _figure(0.9 + 1.75 * height, columns=columns, rows=height, sharey=True, squeeze=False)
    noise = made["settings"]["noise"]
    for axes, (name, line) in zip(grid.flat, lines, strict=False):
        _line(axes, name, line, noise)
    for axes in list(grid.flat)[len(lines) :]:
        axes.set_visible(False)
    _kinds(grid.flat[0])
    grid.flat[0].fill_between([], [], [], color=_BAND, label="the measurement before, and its noise")
    grid.flat[0].plot([], [], color=_BAD, marker="o", markersize=11, linestyle="none", markerfacecolor="none",
                      markeredgecolor=_BAD, label="beyond the noise")  # fmt: skip
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    figure.supylabel("composite", fontsize=10)
    caption = f"The band is the measurement before and {noise['composite']:g} to either side, which is noise."
    return _svg(figure, "history", "Composite of each model from measurement to measurement", caption)


def _line(axes: Any, name: str, line: Sequence[Mapping[str, Any]], noise: Mapping[str, float]) -> None:
    values = [point["composite"] for point in line]
    band = noise["composite"]
    kind, places = line[-1]["kind"], range(len(line))
    for place in places[1:]:
        before = values[place - 1]
        axes.fill_between([place - 0.5, place + 0.5], before - band, before + band, color=_BAND, linewidth=0)
        moved = history.drift(line[place - 1], line[place], noise)
        if moved:
            axes.plot([place], [values[place]], color=_BAD, marker="o", markersize=12, markerfacecolor="none",
                      markeredgewidth=1.6)  # fmt: skip
    axes.plot(places, values, color=_KIND[kind], marker=_MARK[kind], markersize=4.5, linewidth=1.4)
    dates = [str(point["measured_at"] or point["run"])[5:10] for point in line]
    axes.set_title(name if len(name) < 30 else f"{name[:28]}…", loc="left")
    axes.set_xticks([0, len(line) - 1], [dates[0], dates[-1]])
    axes.set_xlim(-0.5, len(line) - 0.5)
    axes.grid(visible=True, axis="y")


# -- common to all --------------------------------------------------------------------------------------------------


def _figure(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Not pyplot: it keeps figures and looks for a screen.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns, **options)


def _ranked(made: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the models that could be loaded, the best last: a vertical axis begins at the bottom."""
    rows = made["selection"]["all_metrics"].items()
    return [(name, row) for name, row in rows if not row["measured"].get("failed")][::-1]


def _by_model(axes: Any, rows: Sequence[tuple[str, Any]]) -> None:
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", length=0)


def _kinds(axes: Any) -> None:
    for kind, mark in _MARK.items():
        axes.plot([], [], marker=mark, linestyle="none", color=_KIND[kind], label=kind)


def _svg(figure: Any, name: str, title: str, caption: str) -> Plot:
    """Return a figure as SVG in the page's colours and fonts, with title and description for who cannot see it."""
    written = StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Several drawings share a page, and their ids must not.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r"font: ([^;\"']*?)([\d.]+px) [^;\"]*", r"font: \1\2 system-ui, sans-serif", text)
    size = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {size.group(0) if size else ""} role="img" aria-labelledby="{name}-title {name}-desc"'
    head += ' xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    head += f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(caption)}</desc>'
    return Plot(title, caption, re.sub(r"<svg[^>]*>", lambda _: head, text, count=1))
