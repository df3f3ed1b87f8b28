"""Prompts: cut to a budget of tokens, built from their parts, with parameters that fit the task. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiplatform.ollama_errors import RequestRefused

BUDGET_TOKENS = 4000
# English text in the tokenisers of Llama, Mistral and Gemma; `measured` asks the model itself.
CHARACTERS_A_TOKEN = 4.0
# A cut at a full stop is taken where it keeps more than this share of the limit.
KEEP_SHARE = 0.8
ELLIPSIS = "…"
SAMPLE = 200
SAMPLES = 3
# What a sample's count may be wrong by, for the text around it.
MARGIN = 0.95

SYSTEM = "You are a helpful assistant. Answer concisely, in a conversational tone."
CLOSING = "Answer the question. If the context does not hold the answer, say so."
EVIDENCE = "Use only the evidence below. Each piece has a number; refer to it where the answer needs a source."

# By task: what the request's `options` hold. num_predict bounds the answer, in tokens.
TASKS: dict[str, dict[str, Any]] = {
    "general": {"temperature": 0.7, "top_p": 0.9, "num_predict": 1000},
    # Spoken answers are short, and a repeated phrase is heard more than it is read.
    "voice": {"temperature": 0.7, "top_p": 0.9, "num_predict": 500, "repeat_penalty": 1.1},
    # Code is right or wrong: the likeliest tokens, with a little room to leave a dead end.
    "code": {"temperature": 0.2, "top_p": 0.95, "num_predict": 2000},
    # Facts out of given text: no chance at all, the same answer each time, so it can be kept.
    "extraction": {"temperature": 0.0, "seed": 0, "num_predict": 1000},
}


def parameters(task: str = "general", **own: Any) -> dict[str, Any]:
    """Return the options for a task, the caller's own over them.

    Raises ``RequestRefused`` for an unknown task, with those there are.
    """
    if task not in TASKS:
        raise RequestRefused("There is no such task", where="task", expected=f"one of {', '.join(TASKS)}", actual=task)
    return TASKS[task] | own


def truncate(text: str, tokens: int = BUDGET_TOKENS, characters_a_token: float = CHARACTERS_A_TOKEN) -> str:
    """Return the text within a budget of tokens.

    A text within it comes back unchanged. A longer one ends at its last full stop where that keeps more than 80 % of
    the budget, else in an ellipsis; either way it is never longer than the budget.

    tokens
        The budget; times ``characters_a_token``, rounded down, it is the limit in characters.
    """
    limit = int(tokens * characters_a_token)
    if len(text) <= limit:
        return text
    cut = text[:limit]
    stop = cut.rfind(".") + 1
    if stop > KEEP_SHARE * limit:
        return cut[:stop]
    return cut[: max(limit - len(ELLIPSIS), 0)] + ELLIPSIS[:limit]


def measured(count: Callable[[str], int], text: str) -> float:
    """Return how many characters of this text make a token of a model, a little less for safety.

    count
        Tells how many tokens the model makes of a text; it is asked for three samples, from begin, middle and end.
    """
    if not text:
        return CHARACTERS_A_TOKEN
    starts = {max(0, (len(text) - SAMPLE) * part // (SAMPLES - 1)) for part in range(SAMPLES)}
    samples = [text[start : start + SAMPLE] for start in sorted(starts)]
    tokens = sum(count(sample) for sample in samples)
    return MARGIN * sum(map(len, samples)) / tokens if tokens else CHARACTERS_A_TOKEN


def build(question: str, context: str = "", system: str = SYSTEM, closing: str = CLOSING) -> str:
    r"""Return one prompt: instruction, the context where there is one, the question, the closing instruction.

    >>> build("Why?", system="Be brief.", closing="Answer.")
    'Be brief.\n\nQuestion: Why?\n\nAnswer.'
    """
    given = f"Context:\n{context.strip()}" if context.strip() else ""
    blocks = [system, given, f"Question: {question.strip()}", closing]
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def evidence(pieces: Sequence[str | Mapping[str, Any]]) -> str:
    """Return a bundle of evidence as the context of a prompt, its pieces numbered from 1.

    pieces
        Texts, or mappings with ``text`` and optionally ``source``.

    Raises ``RequestRefused`` for a mapping without ``text``.
    """
    lines = [EVIDENCE]
    for number, piece in enumerate(pieces, 1):
        told = piece if isinstance(piece, Mapping) else {"text": piece}
        if "text" not in told:
            expected = "a text, or a mapping with 'text' and optionally 'source'"
            where = f"piece {number} of the evidence"
            raise RequestRefused("Evidence without a text", where=where, expected=expected, actual=dict(told))
        source = str(told.get("source", ""))
        lines.append(f"[{number}] {f'({source}) ' if source else ''}{str(told['text']).strip()}")
    return "\n".join(lines)
