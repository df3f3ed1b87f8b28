"""The benchmark's report as one page that needs nothing else: no network, no script, no font."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiplatform import report
from aiplatform.plots import Plot

NO_PLOTS = (
    "This page has no plots: matplotlib is not in the Python that wrote it. The tables have the same figures. "
    "The master's environment (requirements/master.in) has it."
)
TEMPLATE = "benchmark/files/report.html"
# Longer cells are sentences, in letters.
LONG = 60


def page(made: Mapping[str, Any], plots: Mapping[str, Plot] | None, state_tree: Path) -> str:
    """Return a document as HTML.

    made
        A document of ``aiplatform.report``.
    plots
        Drawings by name; None where none could be made, and the page says so.
    state_tree
        The folder of the formulas, which holds the template.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(loader=FileSystemLoader(state_tree), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return jinja.get_template(TEMPLATE).render(
        title=report.title(made),
        platform=made["platform"],
        headline=report.headline(made),
        slots=made["slots"],
        sections=report.sections(made),
        plots={name: replace(plot, svg=Markup(plot.svg)) for name, plot in (plots or {}).items()},  # noqa: S704 (matplotlib escapes its texts)
        no_plots="" if plots is not None else NO_PLOTS,
        forms={section.title: _forms(section) for section in report.sections(made)},
    )


def _forms(section: report.Section) -> list[str]:
    """Return how each column is set: figures to the right, sentences over several lines."""
    return [_form([str(row[place]) for row in section.rows]) for place in range(len(section.headers))]


def _form(cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell != report.EMPTY]
    if filled and all(cell.replace(".", "", 1).replace(" %", "").isdigit() for cell in filled):
        return "number"
    return "text" if any(len(cell) > LONG for cell in filled) else ""
