"""The report's pages, the selection file, and what is said about their changes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser

import pytest
import yaml

from aiplatform import choice, measure_progress, plots, report, report_files, report_html, selection
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def defaults() -> dict:
    formulas = ("benchmark", "models", "ollama", "platform")
    found = [yaml.safe_load((CHECKOUT / f"salt/{name}/defaults.yaml").read_text()) for name in formulas]
    return {key: value for one in found for key, value in one.items()}


@pytest.fixture
def pillar():
    return defaults()


def row(model: str, tps: float = 20, **more) -> dict:
    figures = {"tokens_per_second": float(tps), "coding_quality": 0.7, "general_quality": 0.8, "ttft_ms": 500}
    return {"model": model, "weights_digest": model[0] * 64} | figures | more


@pytest.fixture
def chosen(pillar):
    rows = [row("a:1", hardware="Xeon, 28 CPUs"), row("coder:1"), row("slow:1", tps=1)]
    return selection.select(rows, pillar["benchmark"])


@pytest.fixture
def made(chosen, pillar):
    return report.document(chosen, pillar, NOW)


# What a host that measures in rounds knows besides.
DETAILS = {
    "repeats": [{"tokens_per_second": value} for value in (19, 20, 22)],
    "spread": {"tokens_per_second": [19, 22], "ttft_ms": [480, 530]},
    "roofline": {"tokens_per_second": 32.0},
    "roofline_share": 0.61,
    "coding_quality_markers": 0.7,
    "coding_quality_execution": 0.5,
    "token_ms": {"p50": 40, "p95": 55.25, "p99": 60},
    "ollama_ttft_ms": 491.26,
    "prompt_tokens_per_second": None,
    "disturbed": {"debug": "steal 12 %"},
}


def test_name_is_the_time_in_utc():
    assert report.stem(NOW) == "benchmark_20260102T030405"
    assert report.stem(NOW.astimezone(timezone(timedelta(hours=5)))) == "benchmark_20260102T030405"


def test_slot_table_has_six_rows_with_socket_role_model_and_composite(chosen, pillar):
    rows = report.slot_rows(chosen, pillar)
    assert rows[0] == (1, "node1 (NUMA node 1, port 11434)", "general, locked", "a:1", "0.735")
    assert rows[2][1:4] == ("node0 (NUMA node 0, port 11435)", "coding, locked", "coder:1")
    assert rows[4][2:] == ("general, rotates", "-", "-")
    assert [line[0] for line in rows] == [1, 2, 3, 4, 5, 6]


def test_a_slot_that_pillar_has_rotated_says_so(chosen, pillar, checkout):
    pillar["slots"][5]["model"] = "phi4:14b"
    made = report.document(chosen, pillar, NOW)
    assert "| 5 | node1 (NUMA node 1, port 11434) | general, rotates | - (pillar: phi4:14b) | - |" in report.markdown(
        made
    )
    assert "pillar has put phi4:14b in its place" in report_html.page(made, None, checkout / "salt")


def test_a_selection_that_was_edited_by_hand_is_still_reported(chosen, pillar):
    made = report.document(chosen | {"slot2_general": "mine:1"}, pillar, NOW)
    assert "| mine:1 | slot 2 | not among the general models that were ranked" in report.markdown(made)


def test_text_says_what_was_chosen_why_and_how(made):
    text = report.markdown(made)
    assert text.startswith("# Benchmark of 2026-01-02 03:04:05 UTC\n")
    assert "| 1 | node1 (NUMA node 1, port 11434) | general, locked | a:1 | 0.735 |" in text
    assert "| coder:1 | coding | 20.0 | 500.0 | 0.700 | 0.800 | 0.690 | 0.735 |" in text
    assert "| a:1 | slot 1 | rank 1 of 1 general models |" in text
    assert "| slow:1 | no slot | 1 tokens per second, floor 5 |" in text
    assert "quality x 0.45 + min(tokens per second / 40, 1) x 0.30 + max(0, 1 - first token ms / 5000) x 0.25" in text
    assert "Xeon, 28 CPUs" in text


def test_headline_tells_what_has_moved(chosen, pillar):
    before = chosen | {"slot1_general": "old:1", "slot2_general": "gone:1"}
    text = report.headline(report.document(chosen, pillar, NOW, before))
    assert text == ("3 models measured, 2 of 6 slots filled. Changed: slot 1: old:1 → a:1, slot 2: gone:1 → empty.")
    assert "No slot has changed" in report.headline(report.document(chosen, pillar, NOW, chosen))


def test_who_stays_against_a_higher_rank_is_explained(pillar):
    settings = pillar["benchmark"]
    stored = selection.select([row("a:1", 20)], settings)
    kept = selection.select([row("a:1", 20), row("b:1", 20.2)], settings, selection.incumbents(stored))
    text = report.markdown(report.document(kept, pillar, NOW, stored))
    assert "| a:1 | slot 1 | rank 2 of 2 general models; a:1 stays: b:1 ranks higher" in text


def test_what_only_some_models_have_gets_a_column(pillar):
    both = selection.select([row("a:1", **DETAILS), row("b:1")], pillar["benchmark"])
    text = report.markdown(report.document(both, pillar, NOW))
    assert "| a:1 | 20.0 | 19 to 22 | 61 % | 55.2 | 500.0 | 480 to 530 | 491.3 |" in text
    assert "| b:1 | 20.0 | - | - | - | 500.0 | - | - |" in text
    assert "| a:1 | general | 20.0 | 500.0 | 0.700 | 0.700 | 0.500 | 0.800 |" in text
    assert "Prompt tokens/s" not in text
    assert "a:1: still disturbed after repetition: debug (steal 12 %)" in text


def test_empty_selection_still_reports(pillar, checkout):
    nothing = report.document(selection.select([], pillar["benchmark"]), pillar, NOW)
    assert "0 models measured, 0 of 6 slots filled" in report.markdown(nothing)
    assert "no model fills it" in report_html.page(nothing, plots.all_of(nothing), checkout / "salt")


# -- the page -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in {"meta", "br", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def several():
    """Three runs; a:1 is much faster from the third on."""
    pillar, documents, stored = defaults(), [], {}
    for day, tps in enumerate((20, 20.1, 30), start=1):
        when = NOW.replace(day=day)
        rows = [
            row(name, speed, measured_at=when.isoformat(), **DETAILS)
            for name, speed in (("a:1", tps), ("b<&>:1", 15), ("coder:1", 12), ("d:1", 50))
        ]
        before, stored = stored, choice.choose(stored, hosts(*rows), pillar["benchmark"])
        documents.append(report.document(stored, pillar, when, before, documents))
    return documents


@pytest.fixture(scope="module")
def drawn(several):
    return plots.all_of(several[-1])


@pytest.fixture(scope="module")
def page(several, drawn):
    return report_html.page(several[-1], drawn, CHECKOUT / "salt")


def test_the_page_needs_nothing_else(page):
    parsed = Page(page)
    assert parsed.open == []
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(parsed.tags)
    assert not {name for name, _ in parsed.attributes if name == "src" or name.startswith("on")}
    links = [value for name, value in parsed.attributes if name.endswith("href")]
    assert all(value.startswith("#") for value in links)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", page))
    assert "@import" not in page
    # The names of SVG's own vocabulary are no addresses that anything is fetched from.
    assert set(re.findall(r"https?://[^\"' <]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_pages_plots_are_four_and_can_be_told_without_seeing(page):
    parsed = Page(page)
    assert parsed.tags["figure"] == parsed.tags["svg"] == parsed.tags["figcaption"] == 4
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {f"{name}-{part}" for name in ("choice", "speed", "parts", "history") for part in ("title", "desc")} <= {
        *ids
    }
    assert parsed.tags["title"] == 5


def test_the_pages_colours_are_its_own_in_light_and_dark(page, drawn):
    for plot in drawn.values():
        ET.fromstring(plot.svg)  # noqa: S314 - made here
        assert set(re.findall(r"#[0-9a-f]{6}\b", plot.svg)) == set()
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    for variable in plots.VARIABLES.values():
        assert f"--{variable}:" in light
        assert f"--{variable}:" in dark


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_pages_contrast_is_what_the_guidelines_ask_for(page):
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for marks (1.4.11), on every ground that they stand on."""
    for scheme in re.findall(r":root \{(.*?)\}", page, re.DOTALL):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for ground in ("back", "panel", "band"):
            assert {name for name in ("ink", "soft") if _contrast(colour[name], colour[ground]) < 4.5} == set()
            marks = ("general", "coding", "bad", "part-1", "part-2", "part-3")
            assert {name for name in marks if _contrast(colour[name], colour[ground]) < 3} == set()


def test_names_are_escaped(page):
    assert "b<&>:1" not in page
    assert "b&lt;&amp;&gt;:1" in page


def test_the_same_data_make_the_same_page(several, page, checkout):
    read = json.loads(json.dumps(several[-1]))
    assert report_html.page(read, plots.all_of(read), checkout / "salt") == page


def test_the_choice_plot_shows_each_model_and_its_slot(drawn):
    svg = drawn["choice"].svg
    texts = [element.text for element in ET.fromstring(svg).iter() if element.text and element.tag.endswith("text")]  # noqa: S314 - made here
    assert {"a:1", "b<&>:1", "coder:1", "d:1"} <= {*texts}
    assert {"1", "2", "3", "5"} <= {*texts}


def test_a_first_run_has_no_history_to_draw(several):
    assert set(plots.all_of(several[0])) == {"choice", "speed", "parts"}


def test_a_model_without_figures_is_in_the_tables_only(pillar):
    failed = row("f:1", 0, ttft_ms=9999, general_quality=0, coding_quality=0, failed="cannot be loaded: no memory")
    made = report.document(selection.select([row("a:1"), failed], pillar["benchmark"]), pillar, NOW)
    assert all("f:1" not in plot.svg for plot in plots.all_of(made).values())
    assert "| f:1 | no slot | cannot be loaded: no memory |" in report.markdown(made)
    nothing = report.document(selection.select([failed], pillar["benchmark"]), pillar, NOW)
    assert plots.all_of(nothing) == {}


def test_without_matplotlib_the_page_says_that_it_has_no_plots(several, checkout, monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "find_spec", lambda _name: None)
    path = report_files.write(tmp_path, several[-1], checkout / "salt")
    text = path.with_suffix(".html").read_text()
    assert "This page has no plots: matplotlib is not in the Python that wrote it" in text
    assert "<svg" not in text
    with pytest.raises(PlatformError, match="No plots can be made"):
        plots.all_of(several[-1])


# -- the files ----------------------------------------------------------------------------------------------------


def test_latest_is_the_last_by_time(tmp_path):
    assert report_files.latest(tmp_path) is None
    assert report_files.latest(tmp_path / "none") is None
    for day in (2, 1):
        (tmp_path / f"{report.stem(NOW.replace(day=day))}.json").touch()
    (tmp_path / "benchmark_notes.json").touch()
    assert report_files.latest(tmp_path).name == "benchmark_20260102T030405.json"


def test_a_run_is_found_by_its_time_its_name_and_its_path(tmp_path):
    path = tmp_path / "benchmark_20260102T030405.json"
    path.touch()
    for name in ("20260102T030405", "benchmark_20260102T030405", str(path.with_suffix(".html"))):
        assert report_files.find(tmp_path, name) == path
    with pytest.raises(PlatformError, match=r"no such run.*one of 20260102T030405.*actual: 1999"):
        report_files.find(tmp_path, "1999")


def test_pages_are_made_from_the_data_alone(made, checkout, tmp_path):
    path = report_files.write(tmp_path, made, checkout / "salt")
    assert sorted(one.suffix for one in tmp_path.iterdir()) == [".html", ".json", ".md"]
    pages = {suffix: path.with_suffix(suffix).read_text() for suffix in report_files.PAGES}
    for suffix in pages:
        path.with_suffix(suffix).unlink()
    report_files.ensure_pages(path, checkout / "salt")
    assert {suffix: path.with_suffix(suffix).read_text() for suffix in pages} == pages


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}'])
def test_a_run_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "benchmark_20260102T030405.json"
    path.write_text(content)
    with pytest.raises(PlatformError, match=r"cannot be read.*20260102T030405.*restore the file"):
        report_files.read(path)


# -- the selection file -------------------------------------------------------------------------------------------


def hosts(*rows: dict, skipped: dict | None = None) -> dict:
    return {"ai_server": {"models": list(rows), "skipped": skipped or {}}}


def test_choosing_again_from_the_same_changes_nothing(pillar, tmp_path):
    known = hosts(row("a:1"), row("b:1"), skipped={"a:latest": "same weights as a:1"})
    first = choice.choose({}, known, pillar["benchmark"])
    target = choice.path([str(tmp_path), "/other"])
    choice.write(target, first)
    stored = json.loads(target.read_text())
    again = choice.choose(stored, known, pillar["benchmark"])
    assert again == stored
    assert choice.changes(stored, again) == {}
    assert first["excluded"] == {"a:latest": "same weights as a:1"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_partial_run_keeps_the_others(pillar):
    settings = pillar["benchmark"]
    stored = choice.choose({}, hosts(row("a:1"), row("b:1", tps=19)), settings)
    after = choice.choose(stored, hosts(row("b:1", tps=30)), settings)
    assert (after["slot1_general"], after["slot2_general"]) == ("b:1", "a:1")
    changes = choice.changes(stored, after)
    assert changes["slot1_general"] == {"old": "a:1", "new": "b:1"}
    assert changes["b:1"]["new"]["avg_tok_per_sec"] == 30
    assert "a:1" not in changes


def test_the_slowest_host_counts(pillar):
    both = {
        "one": {"models": [row("a:1", tps=30)], "skipped": {}},
        "two": {"models": [row("a:1", tps=7)], "skipped": {}},
    }
    assert choice.choose({}, both, pillar["benchmark"])["all_metrics"]["a:1"]["avg_tok_per_sec"] == 7


def test_other_floors_alone_are_a_change(pillar):
    known = hosts(row("a:1", general_quality=0.7))
    stored = choice.choose({}, known, pillar["benchmark"])
    pillar["benchmark"]["thresholds"]["min_composite_score"] = 0.9
    assert choice.changes(stored, choice.choose(stored, known, pillar["benchmark"])).keys() == {"selection"}


def test_a_selection_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PlatformError, match=r"cannot be written.*nowhere"):
        choice.write(tmp_path / "nowhere" / "x.json", {})


@pytest.mark.parametrize("content", ["", "[]", '{"models": {}}', '{"models": [1]}', "{}"])
def test_metrics_of_another_shape_are_refused(tmp_path, content):
    file = tmp_path / "metrics.json"
    file.write_text(content)
    with pytest.raises(PlatformError, match="metrics"):
        choice.read_metrics(file)


def test_missing_metrics_are_refused(tmp_path):
    with pytest.raises(PlatformError, match="cannot be read"):
        choice.read_metrics(tmp_path / "none.json")


# -- progress -----------------------------------------------------------------------------------------------------


def test_lines_of_progress():
    pull = {
        "id": "ai",
        "data": {"operation": "pull", "model": "a:1", "status": "pulling", "completed": 50, "total": 200},
    }
    assert measure_progress.line("ai_platform/models/progress", pull) == "ai: pull a:1: pulling 25 %"
    test = {"model": "a:1", "instance": "node1", "test": "debug", "tests_done": 3, "tests": 7, "done": False}
    event = {"id": "ai", "data": test | {"tokens_per_second": 12.3}}
    assert measure_progress.line("ai_platform/benchmark/progress", event) == (
        "ai: node1: a:1: debug (3 of 7), 12.3 tokens/s"
    )
    assert measure_progress.line("salt/job/1/new", {}) == ""
