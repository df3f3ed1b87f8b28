"""What the benchmark says of an answer agrees with what the server did: within 1 % or 1 ms, in every combination."""

from __future__ import annotations

import itertools
import statistics

import pytest

from aiplatform import measure_answer
from tests.functional.truth_server import Script, sent, truth

pytestmark = pytest.mark.timed
TRIES = 12
COMBINATIONS = [
    Script(ttft_ms, gap_ms, 11, per_piece, empty_first, thinking, usage)
    for ttft_ms, gap_ms, per_piece, empty_first, thinking, usage in itertools.product(
        (30, 150), (4, 20), (1, 3), (0, 2), (0, 4), (True, False)
    )
]


@pytest.fixture(scope="module")
def client():
    with truth() as client:
        yield client


def near(ours: float, true: float) -> bool:
    """Milliseconds within 1 % or 1 ms."""
    return abs(ours - true) <= max(1.0, 0.01 * true)


def near_rate(ours: float, true: float) -> bool:
    """Tokens per second, by the time of one token within 1 % or 1 ms."""
    return near(1000 / ours, 1000 / true)


def wrong(sample, script: Script, pieces: list) -> dict:
    """Which of our figures are not those of the truth."""
    times, held = [at for at, _ in pieces], [count for _, count in pieces]
    took = times[-1] - times[0]
    gaps = [(b - a) / count for (a, b), count in zip(itertools.pairwise(times), held[1:], strict=True)]
    per_token = [gap for gap, count in zip(gaps, held[1:], strict=True) for _ in range(count)]
    wall_rate = sum(held[1:]) / took * 1000
    facts = {
        "tokens": (sample.tokens == script.tokens, sample.tokens, script.tokens),
        "ttft": (near(sample.ttft_ms, times[0]), sample.ttft_ms, times[0]),
        "wall rate": (near_rate(sample.wall_tokens_per_second, wall_rate), sample.wall_tokens_per_second, wall_rate),
        "median gap": (near(sample.gap_ms, statistics.median(per_token)), sample.gap_ms, statistics.median(per_token)),
        "all gaps": (near(sum(sample.token_ms), took), sum(sample.token_ms), took),
    }
    rate, prompt_rate = wall_rate, None
    if script.usage:
        rate, prompt_rate = 1000 / script.gap_ms, script.prompt_tokens / (script.ttft_ms - 1) * 1000
    facts["rate"] = (near_rate(sample.tokens_per_second, rate), sample.tokens_per_second, rate)
    facts["prompt rate"] = (
        sample.prompt_tokens_per_second == pytest.approx(prompt_rate), sample.prompt_tokens_per_second, prompt_rate
    )  # fmt: skip
    return {name: (ours, true) for name, (right, ours, true) in facts.items() if not right}


@pytest.mark.parametrize("script", COMBINATIONS, ids=lambda script: "-".join(str(v) for v in vars(script).values()))
def test_figures_are_those_of_the_truth(client, script):
    """The best of some tries: other work on the machine delays either end."""
    errors: list[dict] = []
    for _ in range(TRIES):
        sample = measure_answer.ask(client, "m:1", script.prompt, {}, 10)
        assert sample.error is None
        errors.append(wrong(sample, script, sent(client)))
        if not errors[-1]:
            return
    raise AssertionError(min(errors, key=len))


def test_the_programmed_times_are_the_sent_ones(client):
    """The truth itself: pieces leave when the script says, in the best of some tries."""
    script, late = Script(50, 10, 9, 2), []
    for _ in range(TRIES):
        measure_answer.ask(client, "m:1", script.prompt, {}, 10)
        pieces = sent(client)
        late.append(max(at - due for (at, _), (due, _, _) in zip(pieces, script.pieces(), strict=True)))
        assert [count for _, count in pieces] == [2, 2, 2, 2, 1]
        assert min(at - due for (at, _), (due, _, _) in zip(pieces, script.pieces(), strict=True)) >= 0
    assert min(late) < 0.5


def test_who_counted_the_tokens_is_said(client):
    counted = [
        measure_answer.ask(client, "m:1", Script(usage=usage).prompt, {}, 10).counted for usage in (True, False)
    ]  # fmt: skip
    assert counted == ["ollama", "logprobs"]
