"""Markers, composites, kinds and tiers, with every boundary."""

from __future__ import annotations

import copy

import pytest
import yaml

from aiplatform import scoring

CODE = '''```python
import heapq
from typing import List

def merge_sort(items: List[int]) -> List[int]:
    """Sort."""
    return list(heapq.merge(items))

def test_empty():
    assert merge_sort([]) == []
```'''
PROSE = "First paragraph with words.\n\n- one\n- two\n" + "x" * 800


@pytest.fixture(scope="module")
def suite(checkout):
    return yaml.safe_load((checkout / "benchmarks/models/suite.yaml").read_text())


@pytest.fixture
def settings(checkout):
    return yaml.safe_load((checkout / "salt/benchmark/defaults.yaml").read_text())["benchmark"]


def test_suite_is_the_documented_one(suite):
    kinds = {name: prompt["category"] for name, prompt in suite["prompts"].items()}
    assert kinds == dict.fromkeys(("code_gen", "debug", "refactor"), "coding") | dict.fromkeys(
        ("explain", "creative", "reasoning"), "general"
    )
    assert suite["latency"]["prompt"] == "Hi"


def test_weights_add_up_and_name_markers(suite):
    for prompt in suite["prompts"].values():
        assert sum(prompt["weights"].values()) == pytest.approx(1)
        assert prompt["weights"].keys() <= suite["markers"].keys()


def test_weights_are_the_documented_ones(suite):
    weights = {name: prompt["weights"] for name, prompt in suite["prompts"].items()}
    assert weights["code_gen"] == {
        "def": 0.20, "return": 0.20, "docstring": 0.15, "type_hint": 0.15, "code_block": 0.10, "assert": 0.08,
        "test_def": 0.07, "import": 0.05,
    }  # fmt: skip
    assert weights["debug"] == {"def": 0.30, "return": 0.30, "code_block": 0.25, "assert": 0.15}
    assert weights["refactor"] == {"def": 0.25, "return": 0.25, "code_block": 0.20, "type_hint": 0.15, "import": 0.15}
    for name in ("explain", "creative", "reasoning"):
        assert weights[name] == {"length": 0.35, "lines": 0.40, "list": 0.15, "blank_line": 0.10}


@pytest.mark.parametrize("name", ["code_gen", "debug", "refactor"])
def test_complete_code_scores_full(suite, name):
    assert scoring.score(suite["prompts"][name], suite["markers"], CODE) == pytest.approx(1)


@pytest.mark.parametrize(
    ("marker", "without"),
    [
        ("def", CODE.replace("def ", "fed ")),
        ("return", CODE.replace("return", "yield")),
        ("docstring", CODE.replace('"""', "#")),
        ("type_hint", CODE.replace("->", ":")),
        ("code_block", CODE.replace("```", "")),
        ("assert", CODE.replace("assert", "print")),
        ("test_def", CODE.replace("test_empty", "empty")),
        ("import", CODE.replace("import", "load").replace("from", "of")),
    ],
)
def test_a_missing_marker_costs_its_weight(suite, marker, without):
    assert scoring.marker_share(suite["markers"][marker], CODE) == 1
    assert scoring.marker_share(suite["markers"][marker], without) == 0


def test_prose_markers(suite):
    prompt, markers = suite["prompts"]["explain"], suite["markers"]
    assert scoring.score(prompt, markers, PROSE) == pytest.approx(1)
    assert scoring.score(prompt, markers, "x" * 400) == pytest.approx(0.35 / 2)
    assert scoring.score(prompt, markers, "x" * 50 + "\n" + "x" * 49) == pytest.approx(0.35 / 8)
    assert scoring.score(prompt, markers, "x" * 50 + "\n" + "x" * 50) == pytest.approx(0.35 * 101 / 800 + 0.40)
    assert scoring.score(prompt, markers, "1. a\n" + "x" * 800) == pytest.approx(0.90)


def test_failure_and_empty_answer_score_nothing(suite):
    for prompt in suite["prompts"].values():
        assert scoring.score(prompt, suite["markers"], None) == 0
        assert scoring.score(prompt, suite["markers"], "   \n ") == 0


@pytest.mark.parametrize(
    ("end", "right"),
    [
        ("Answer: 9", True),
        ("**Answer:** 9 apples", True),
        ("Answer: 18", False),
        ("Answer: 9\nNo, wait. Answer: 8", False),
        ("so there remain 9", True),
        ("so there remain 9 of 18", False),
        ("Answer: 90", False),
        ("Answer: -9", False),
        ("Answer: 9.5", False),
        ("There are 9.", True),
        ("none", False),
    ],
)
def test_reasoning_is_checked(suite, end, right):
    text = PROSE + "\n" + end
    assert (scoring.score(suite["prompts"]["reasoning"], suite["markers"], text) > 0) is right


def test_missing_answers_lower_the_mean(suite):
    answers = dict.fromkeys(("code_gen", "debug", "refactor"), CODE)
    full = scoring.qualities(suite, answers)
    assert full == {"coding": pytest.approx(1), "general": 0}
    answers["debug"] = None
    assert scoring.qualities(suite, answers)["coding"] == pytest.approx(2 / 3)


def test_composite_is_the_formula():
    scores = scoring.composite(0.8, 0.6, 20, 1000)
    assert scores.coding == pytest.approx(0.8 * 0.45 + 0.5 * 0.30 + 0.8 * 0.25)
    assert scores.general == pytest.approx(0.6 * 0.45 + 0.5 * 0.30 + 0.8 * 0.25)


@pytest.mark.parametrize(("tps", "speed"), [(0, 0), (40, 1), (39.999, 0.999975), (400, 1)])
def test_speed_is_capped(tps, speed):
    assert scoring.composite(0, 0, tps, 0).speed == pytest.approx(speed)


@pytest.mark.parametrize(("ttft", "latency"), [(0, 1), (4999, 0.0002), (5000, 0), (5001, 0), (9999, 0)])
def test_latency_ends_at_five_seconds(ttft, latency):
    assert scoring.composite(0, 0, 0, ttft).latency == pytest.approx(latency)


def scores(coding: float, general: float) -> scoring.Composite:
    return scoring.Composite(0, 0, coding, general)


@pytest.mark.parametrize(
    ("coding", "general", "kind"),
    [
        (0.70, 0.60, "coding"),  # exactly 0.10, a little less in binary
        (0.699, 0.60, "general"),
        (0.701, 0.60, "coding"),
        (0.60, 0.70, "general"),
    ],
)
def test_lead_of_the_composite(settings, coding, general, kind):
    assert scoring.kind("m:1", scores(coding, general), settings) == kind


@pytest.mark.parametrize("name", ["qwen2.5-CODER:14B", "codestral:22b", "x/codellama:7b", "starcoder2:3b"])
def test_name_makes_a_coding_model(settings, name):
    assert scoring.kind(name, scores(0.5, 0.6), settings) == "coding"
    assert scoring.kind_by_name(name, settings) == "coding"


def test_a_registry_name_makes_none(settings):
    assert scoring.kind("coder.example:5000/library/m:1", scores(0.5, 0.6), settings) == "general"


def test_override_comes_first(settings):
    settings["category_overrides"] = {"Coder-X:7b": "general", "plain:1b": "coding"}
    assert scoring.kind("coder-x:7B", scores(0.9, 0.1), settings) == "general"
    assert scoring.kind("plain:1b", scores(0.1, 0.9), settings) == "coding"
    assert scoring.kind_by_name("other:1b", settings) is None


@pytest.mark.parametrize(
    ("gigabytes", "tier"),
    [(8.33, "small"), (10 / 1.2, "medium"), (9, "medium"), (12.5, "medium"), (12.51, "large"), (40, "large")],
)
def test_tiers(settings, gigabytes, tier):
    assert scoring.tier(gigabytes * 1e9, settings) == tier


def test_tier_overrides_keep_working(settings):
    settings |= {"small_max_gb": 8, "medium_max_gb": 20, "size_overhead_factor": 1.25}
    settings |= {"small_timeout": 600, "large_timeout": 1800}
    assert scoring.timeout(6.3e9, settings) == 600
    assert scoring.timeout(6.5e9, settings) == 900
    assert scoring.timeout(16e9, settings) == 900
    assert scoring.timeout(16.1e9, settings) == 1800


def test_each_tier_has_its_timeout(settings):
    assert [scoring.timeout(size * 1e9, settings) for size in (1, 10, 30)] == [300, 900, 1200]


def test_hash_follows_what_changes_an_answer(suite, settings):
    first = scoring.suite_hash(suite, settings)
    assert scoring.suite_hash(copy.deepcopy(suite), settings | {"coding_threshold": 0.2}) == first
    assert scoring.suite_hash(suite, settings | {"num_predict": 300}) != first
    other = copy.deepcopy(suite)
    other["prompts"]["debug"]["prompt"] += "!"
    assert scoring.suite_hash(other, settings) != first
