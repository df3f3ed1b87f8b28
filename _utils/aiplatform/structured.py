"""Answers that are data: JSON by a schema, out of a bundle of evidence, checked, with one attempt at repair."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import referencing

from aiplatform import ollama, prompts
from aiplatform.calling import Caller

# The most problems that are told to a model, or to a person.
PROBLEMS = 5


class InvalidAnswer(ollama.OllamaError):
    """The model's answer is not what the schema asks for, also after the repair. ``text`` is that answer."""

    def __init__(self, model: str, problems: Sequence[str], text: str) -> None:
        self.problems = list(problems)
        self.text = text
        super().__init__(
            f"{model} did not give an answer that fits the schema",
            expected="JSON that the schema allows",
            actual="; ".join(problems),
            hint="take a larger model, a simpler schema, or a larger num_predict where the answer was cut",
        )


def extract(
    caller: Caller,
    model: str,
    question: str,
    pieces: Sequence[str | Mapping[str, Any]],
    schema: Mapping[str, Any],
    *,
    deadline: float | None = None,
    **options: Any,
) -> Any:
    """Return what a model reads out of evidence, as data that fits a JSON Schema.

    question
        What is asked of the evidence.
    pieces
        The evidence: texts, or mappings with ``text`` and optionally ``source``.
    schema
        JSON Schema, draft 2020-12, without references to other documents; Ollama writes within it as far as it can.
    deadline
        Seconds for everything, the repair included.

    Raises ``RequestRefused`` for a schema that is none, before anything is sent, and ``InvalidAnswer``.
    """
    check_schema(schema)
    prompt = prompts.build(question, prompts.evidence(pieces))
    request: dict[str, Any] = {"format": dict(schema), "options": prompts.parameters("extraction", **options)}
    answer = caller.generate(model, prompt, deadline=deadline, **request)
    data, problems = read(answer.text, schema)
    if not problems:
        return data
    left = None if deadline is None else max(deadline - answer.seconds, 0.001)
    repaired = caller.generate(model, repair(prompt, answer.text, problems), deadline=left, **request)
    data, problems = read(repaired.text, schema)
    if problems:
        raise InvalidAnswer(model, problems, repaired.text)
    return data


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that is none."""
    if not isinstance(schema, Mapping):
        raise ollama.RequestRefused("The schema is no JSON Schema", expected="a mapping", actual=schema)
    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema))
    except jsonschema.SchemaError as err:
        raise ollama.RequestRefused(
            "The schema is no JSON Schema", where=err.json_path, expected="draft 2020-12", actual=err.message
        ) from err


def read(text: str, schema: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return the data of an answer, and what is wrong with it."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as err:
        return None, [f"no JSON: {err}"]
    # A registry of its own: nothing is ever fetched for a reference.
    checker = jsonschema.Draft202012Validator(dict(schema), registry=referencing.Registry())
    try:
        found = sorted(checker.iter_errors(data), key=lambda error: error.json_path)
    except referencing.exceptions.Unresolvable as err:
        raise ollama.RequestRefused("The schema refers to another document", actual=str(err)) from err
    except RecursionError:
        return None, ["nested too deeply"]
    return data, [f"{error.json_path}: {error.message}" for error in found[:PROBLEMS]]


def repair(prompt: str, text: str, problems: Sequence[str]) -> str:
    """The prompt of the second attempt."""
    told = "\n".join(f"- {problem}" for problem in problems)
    blocks = [
        prompt,
        f"Your last answer was:\n{text}",
        f"It is not valid:\n{told}",
        "Give the whole answer, corrected.",
    ]
    return "\n\n".join(blocks)
