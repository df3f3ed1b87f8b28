"""Prompts: the rule of cutting at each of its boundaries, the parts of a prompt, parameters by task."""

from __future__ import annotations

import pytest

from aiplatform import prompts
from aiplatform.ollama_errors import RequestRefused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a" * 40, "a" * 40),  # exactly the limit
        ("a" * 41, "a" * 39 + "…"),  # one more: the ellipsis is within the limit
        ("a" * 32 + "." + "b" * 20, "a" * 32 + "."),  # 33 of 40 characters kept: more than 80 %
        ("a" * 31 + "." + "b" * 20, "a" * 31 + "." + "b" * 7 + "…"),  # 32 of 40: exactly 80 % is not more
        ("a." * 30, "a." * 20),
        ("a" * 39 + "." + "b", "a" * 39 + "."),  # the stop is the limit's last character
        ("a" * 40 + ".", "a" * 39 + "…"),  # the stop is beyond
        ("é" * 41, "é" * 39 + "…"),
    ],
)
def test_a_text_is_cut_by_the_rule(text, expected):
    assert prompts.truncate(text, tokens=10) == expected
    assert len(prompts.truncate(text, tokens=10)) <= 40


def test_the_budget_is_4000_tokens_of_4_characters():
    assert len(prompts.truncate("x" * 16_000)) == 16_000
    assert len(prompts.truncate("x" * 16_001)) == 16_000
    assert prompts.truncate("x" * 16_000)[-1] == "x"


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_budget_of_nothing_is_kept_too(tokens):
    assert len(prompts.truncate("abcdefgh", tokens, 1)) == tokens


def test_the_models_own_tokens_count():
    asked = []

    def every_second(text: str) -> int:
        asked.append(text)
        return len(text) // 2

    text = "".join(chr(97 + at % 26) for at in range(10_000))
    assert prompts.measured(every_second, text) == pytest.approx(2 * prompts.MARGIN)
    assert [len(sample) for sample in asked] == [200, 200, 200]
    assert (asked[0], asked[-1]) == (text[:200], text[-200:])


def test_a_text_shorter_than_a_sample_is_asked_once():
    asked = []
    prompts.measured(lambda text: asked.append(text) or 5, "short")
    assert asked == ["short"]


def test_nothing_to_measure_leaves_the_rule_of_thumb():
    assert prompts.measured(lambda _: 0, "x") == prompts.CHARACTERS_A_TOKEN
    assert prompts.measured(lambda _: 1 / 0, "") == prompts.CHARACTERS_A_TOKEN


def test_a_prompt_has_its_parts_in_order():
    prompt = prompts.build("  Why?  ", "The sky is blue.\n")
    blocks = prompt.split("\n\n")
    assert blocks == [prompts.SYSTEM, "Context:\nThe sky is blue.", "Question: Why?", prompts.CLOSING]


@pytest.mark.parametrize("context", ["", "  \n"])
def test_without_context_its_block_is_absent(context):
    assert "Context" not in prompts.build("Why?", context)


def test_evidence_is_numbered_and_names_its_sources():
    text = prompts.evidence(["one", {"text": " two ", "source": "page 3"}, {"text": "three"}])
    assert text.splitlines()[1:] == ["[1] one", "[2] (page 3) two", "[3] three"]


def test_evidence_without_a_text_is_refused_and_a_number_is_one():
    assert prompts.evidence(["one", 36]).endswith("[2] 36")
    with pytest.raises(RequestRefused, match="piece 2 of the evidence"):
        prompts.evidence(["one", {"age": 36}])


def test_parameters_fit_the_task():
    assert prompts.parameters() == {"temperature": 0.7, "top_p": 0.9, "num_predict": 1000}
    assert prompts.parameters("voice")["num_predict"] == 500
    assert prompts.parameters("voice")["repeat_penalty"] == 1.1
    assert prompts.parameters("general", temperature=0)["temperature"] == 0
    # `max_tokens` is OpenAI's word; Ollama would ignore it.
    assert all("max_tokens" not in options for options in prompts.TASKS.values())
    with pytest.raises(RequestRefused, match=r"expected: one of general, voice.*actual: poetry"):
        prompts.parameters("poetry")
