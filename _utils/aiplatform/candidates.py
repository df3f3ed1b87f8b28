"""A measured model: its figures checked, its composites and its kind, and what is published of it. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiplatform import noise, scoring
from aiplatform.errors import PlatformError
from aiplatform.ollama import normalise

_RATES = ("tokens_per_second", "ttft_ms")
_QUALITIES = ("coding_quality", "general_quality")
_FIGURES = (*_RATES, *_QUALITIES)


@dataclass(frozen=True)
class Candidate:
    """A measured model with what follows from its figures."""

    model: str
    figures: Mapping[str, float]
    scores: scoring.Composite
    kind: str
    row: Mapping[str, Any]
    # The composite of the kind served, for each pass over the suite.
    passes: Sequence[float] = ()

    @property
    def digest(self) -> str | None:
        """The weights' digest, where it is known."""
        digest = self.row.get("weights_digest")
        return str(digest).removeprefix("sha256:") if digest else None

    @property
    def composite(self) -> float:
        """The composite of the kind that the model serves."""
        return self.scores.of(self.kind)

    @property
    def quality(self) -> float:
        """The quality of the kind that the model serves."""
        return self.figures[f"{self.kind}_quality"]

    @property
    def rank_key(self) -> tuple[float, float, str]:
        """Sorts the best first: composite, then speed, then name."""
        return (-round(self.composite, 9), -self.figures["tokens_per_second"], normalise(self.model))


def candidate(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Candidate:
    """Return a checked row with its composites and its kind.

    Raises ``PlatformError`` where a figure cannot be.
    """
    name = row.get("model")
    if not isinstance(name, str) or not name.strip():
        raise PlatformError("A measured model has no name", where="models", expected="model: <name:tag>", actual=name)
    figures = {key: _figure(name, key, row.get(key)) for key in _FIGURES}
    repeats = [
        {key: _figure(f"{name}, pass {number},", key, one[key]) for key in _FIGURES if key in one}
        for number, one in enumerate(row.get("repeats") or [], start=1)
    ]
    ceiling = settings["toks_norm_ceiling"]
    scores = scoring.composite(ceiling=ceiling, **figures)
    kind = scoring.kind(name, scores, settings)
    return Candidate(name, figures, scores, kind, row, noise.composites(figures, repeats, kind, ceiling))


def _figure(of: str, key: str, value: Any) -> float:
    highest = 1.0 if key in _QUALITIES else sys.float_info.max
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not a number compares false with everything, so it fails here, too.
    if not number or not 0 <= value <= highest:
        raise PlatformError(
            f"The measured {key} of {of} cannot be used",
            where=f"models, {key}",
            expected="a number from 0 to 1" if key in _QUALITIES else "a finite number, 0 or more",
            actual=value,
        )
    return float(value)


def metrics(item: Candidate) -> dict[str, Any]:
    """Return what is published of a model, rounded, and under ``measured`` what it was computed from."""
    return {
        "avg_tok_per_sec": round(item.figures["tokens_per_second"], 1),
        "toks_norm": round(item.scores.speed, 3),
        "latency_ms": round(item.figures["ttft_ms"], 1),
        "latency_score": round(item.scores.latency, 3),
        "coding_quality": round(item.figures["coding_quality"], 3),
        "general_quality": round(item.figures["general_quality"], 3),
        "coding_composite": round(item.scores.coding, 3),
        "general_composite": round(item.scores.general, 3),
        "category": item.kind,
        "measured": {key: value for key, value in item.row.items() if key != "model"},
    }
