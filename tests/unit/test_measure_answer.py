"""One streamed answer, from pieces with given times; the wire is measured against tests/functional/truth_server.py."""

from __future__ import annotations

import pytest

from aiplatform import measure_answer
from aiplatform.measure_answer import answered, percentiles, spread, token_latencies
from aiplatform.ollama import Chunk, InstanceDown, OllamaError, Timeout

END = {"response": "", "done": True, "done_reason": "stop", "eval_count": 4, "eval_duration": 200_000_000}


def piece(text: str, **more) -> dict:
    return {"response": text, "done": False, **more}


class Answers:
    """An instance that gives one answer after the other, or fails so."""

    def __init__(self, *answers, alive=True):
        self.answers = list(answers)
        self.alive = alive
        self.asked: list[dict] = []

    def generate(self, model, prompt, **fields):
        self.asked.append(fields)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield from answer

    def health(self):
        return self.alive


def test_pieces_give_exact_figures():
    chunks = [Chunk(0.25, piece("")), Chunk(0.5, piece("a")), Chunk(0.75, piece("b")), Chunk(1.0, END)]
    sample = answered(iter(chunks))
    assert (sample.ttft_ms, sample.text, sample.model_s) == (500.0, "ab", 1.0)
    assert (sample.tokens, sample.tokens_per_second, sample.finished) == (4, 20.0, "stop")


def test_nothing_said_is_no_first_token():
    sample = answered([Chunk(0.1, END | {"eval_count": 0})])
    assert (sample.ttft_ms, sample.text, sample.tokens_per_second, sample.token_ms) == (None, "", 0.0, ())


def test_ollamas_own_clock_says_when_the_first_token_was_made():
    first = piece("a", created_at="2026-01-02T03:04:05.500000123Z")
    end = END | {"created_at": "2026-01-02T03:04:06.000Z", "total_duration": 750_000_000, "load_duration": 100_000_000,
                 "prompt_eval_duration": 140_000_000}  # fmt: skip
    sample = answered([Chunk(0.26, first), Chunk(0.8, end)])
    assert sample.ollama_ttft_ms == pytest.approx(250)
    assert sample.ollama_prompt_ms == pytest.approx(240)
    assert answered([Chunk(0.26, piece("a")), Chunk(0.8, END)]).ollama_ttft_ms is None


@pytest.mark.parametrize(
    ("times", "tokens", "making", "held"),
    [
        ([1, 2, 3], 3, 3, [1, 1, 1]),
        ([1, 2, 3], 2, 2, [1, 1, 1]),
        ([1, 4, 7, 9], 11, 11, [3, 3, 3, 2]),
        ([1, 2, 5, 6], 6, 6, [1, 1, 3, 1]),
        ([1], 5, 5, [5]),
        ([], 0, 0, []),
    ],
)
def test_further_tokens_are_in_the_pieces_that_were_long_in_coming(times, tokens, making, held):
    assert spread(times, tokens, making) == held


def test_latencies_are_those_of_tokens_not_of_pieces():
    assert token_latencies([1.0, 1.3, 1.4], [2, 3, 1]) == pytest.approx([100, 100, 100, 100])


def test_percentiles_are_values_that_were_seen():
    assert percentiles(range(1, 101), 50, 95, 99) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([7], 50, 99) == {"p50": 7, "p99": 7}
    assert percentiles([], 50) == {}


def test_an_answer_without_counts_is_asked_again_with_each_token_named():
    bare = {"response": "", "done": True}
    first = [Chunk(0.1, piece("a b")), Chunk(0.3, piece("c d")), Chunk(0.3, bare)]
    named = [
        Chunk(5.0, piece("a b", logprobs=[{}, {}])), Chunk(6.0, piece("c d", logprobs=[{}, {}])), Chunk(6.0, bare)
    ]  # fmt: skip
    instance = Answers(first, named)
    sample = measure_answer.ask(instance, "m:1", "Hi", {"seed": 1}, 9)
    assert (sample.tokens, sample.counted, sample.ttft_ms) == (4, "logprobs", 100.0)
    assert sample.tokens_per_second == pytest.approx(10)
    assert [fields.get("logprobs") for fields in instance.asked] == [None, True]


def test_where_nobody_counts_each_piece_is_a_token():
    bare = [Chunk(0.1, piece("a")), Chunk(0.3, piece("b")), Chunk(0.3, {"response": "", "done": True})]
    sample = measure_answer.ask(Answers(bare, bare), "m:1", "Hi", {}, 9)
    assert (sample.tokens, sample.counted) == (2, "pieces")


def test_a_request_is_deterministic_bounded_and_does_not_think():
    instance = Answers([Chunk(0.1, END | {"response": "a"})])
    measure_answer.ask(instance, "m:1", "Hi", {"seed": 42}, 10)
    (fields,) = instance.asked
    assert (fields["think"], fields["options"]) == (False, {"seed": 42})
    assert (fields["limits"].read, fields["limits"].total) == (10, 10)


def test_a_timeout_is_a_failed_sample():
    sample = measure_answer.ask(Answers(Timeout("Not complete after 0.3 s")), "m:1", "Hi", {}, 0.3)
    assert (sample.text, sample.tokens_per_second, sample.ttft_ms) == (None, 0.0, None)
    assert "0.3 s" in sample.error
    assert sample.timed_out_s == 0.3


def test_a_refusal_took_the_time_that_it_took(monkeypatch):
    now = iter([100.0, 100.5])
    monkeypatch.setattr(measure_answer.time, "monotonic", lambda: next(now))
    sample = measure_answer.ask(Answers(OllamaError("no")), "m:1", "Hi", {}, 300)
    assert (sample.model_s, sample.wall_s, sample.timed_out_s) == (0.5, 0.5, None)


def test_a_dead_instance_is_no_verdict_on_the_model():
    with pytest.raises(OllamaError):
        measure_answer.ask(Answers(InstanceDown("gone"), alive=False), "m:1", "Hi", {}, 1)
