"""How good an answer is, how good a model is, and what kind of model it is. Pure: no host, no network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiplatform.ollama import normalise

Suite = Mapping[str, Any]

CODING = "coding"
GENERAL = "general"
KINDS = (CODING, GENERAL)
# What the composite is made of.
RATES = ("tokens_per_second", "ttft_ms")
FIGURES = (*RATES, "coding_quality", "general_quality")
# Where the coding quality comes from (pillar benchmark:scoring): what the answer looks like, or what its code does.
MARKERS = "markers"
EXECUTION = "execution"

WEIGHT_QUALITY = 0.45
WEIGHT_SPEED = 0.30
WEIGHT_LATENCY = 0.25
LATENCY_CEILING_MS = 5000.0
# What counts as the time to first token where none came.
NO_LATENCY_MS = 9999.0
# Differences below this are noise of binary fractions: 0.7 - 0.6 is a little less than 0.1.
_DIGITS = 9
_GIGABYTE = 1e9


class Composite(NamedTuple):
    """The two composites of a model, with the parts they share."""

    speed: float
    latency: float
    coding: float
    general: float

    def of(self, kind: str) -> float:
        """Return the composite that counts for a kind."""
        return self.coding if kind == CODING else self.general


def at_least(value: float, limit: float) -> bool:
    """Return whether ``value`` reaches ``limit``, exactly reaching it included, binary rounding aside."""
    return round(value - limit, _DIGITS) >= 0


def suite_hash(suite: Suite, settings: Mapping[str, Any]) -> str:
    """Return the identity of what is asked and how: 16 hex digits.

    suite
        The suite's content.
    settings
        Pillar ``benchmark``; of it only what changes an answer counts.
    """
    asked = {key: settings[key] for key in ("num_predict", "temperature", "seed")}
    text = json.dumps([suite, asked], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def marker_share(marker: Mapping[str, Any], text: str) -> float:
    """Return how far an answer meets a marker, 0 to 1."""
    if "full_at_chars" in marker:
        return min(len(text) / float(marker["full_at_chars"]), 1.0)
    long_enough = len(text) > marker.get("more_than_chars", -1)
    return float(long_enough and re.search(marker["pattern"], text, re.MULTILINE) is not None)


def answer_is_right(check: Mapping[str, Any] | None, text: str) -> bool:
    """Return whether an answer passes its prompt's check; without a check every answer does.

    check
        ``patterns``, each with one group, and ``equals``: the first pattern that is found decides, by its last match.
    """
    if check is None:
        return True
    for pattern in check["patterns"]:
        if found := re.findall(pattern, text):
            return bool(found[-1] == check["equals"])
    return False


def score(prompt: Mapping[str, Any], markers: Mapping[str, Any], text: str | None) -> float:
    """Return the quality of one answer, 0 to 1.

    prompt
        An entry of the suite's ``prompts``.
    markers
        The suite's ``markers``.
    text
        The answer; None where the request failed or timed out, which scores 0.
    """
    if text is None or not answer_is_right(prompt.get("answer"), text):
        return 0.0
    answer = text.strip()
    return float(sum(weight * marker_share(markers[name], answer) for name, weight in prompt["weights"].items()))


def qualities(suite: Suite, answers: Mapping[str, str | None]) -> dict[str, float]:
    """Return ``{"coding": …, "general": …}``: the mean score of each kind's prompts, 0 for what is missing."""
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for name, prompt in suite["prompts"].items():
        scores[prompt["category"]].append(score(prompt, suite["markers"], answers.get(name)))
    return {kind: sum(values) / len(values) if values else 0.0 for kind, values in scores.items()}


def composite(
    coding_quality: float, general_quality: float, tokens_per_second: float, ttft_ms: float, ceiling: float = 40.0
) -> Composite:
    """Return quality*0.45 + min(tps/ceiling, 1)*0.30 + max(0, 1 - ttft/5000)*0.25 for both qualities.

    tokens_per_second
        Mean over the prompts.
    ttft_ms
        Time to first token in milliseconds, model loaded.
    ceiling
        Tokens per second that earn the full mark.
    """
    speed = min(tokens_per_second / ceiling, 1.0)
    latency = max(0.0, 1 - ttft_ms / LATENCY_CEILING_MS)
    shared = WEIGHT_SPEED * speed + WEIGHT_LATENCY * latency
    return Composite(
        speed, latency, WEIGHT_QUALITY * coding_quality + shared, WEIGHT_QUALITY * general_quality + shared
    )


def kind_by_name(model: str, settings: Mapping[str, Any]) -> str | None:
    """Return the kind that an override or a name pattern gives, before anything is measured; else None."""
    return override(model, settings) or (CODING if _named_coding(model, settings) else None)


def override(model: str, settings: Mapping[str, Any]) -> str | None:
    """Return the kind that the operator gave this model; else None."""
    given = {normalise(name): kind for name, kind in settings["category_overrides"].items()}
    return given.get(normalise(model))


def _named_coding(model: str, settings: Mapping[str, Any]) -> bool:
    # The registry's or the namespace's name says nothing about the model.
    name = model.lower().rpartition("/")[2]
    return any(pattern.lower() in name for pattern in settings["coding_name_patterns"])


def kind(model: str, scores: Composite, settings: Mapping[str, Any]) -> str:
    """Return ``coding`` or ``general``: an override, the lead of the coding composite, the name, else general.

    settings
        Pillar ``benchmark``: ``category_overrides``, ``coding_threshold``, ``coding_name_patterns``.
    """
    given = override(model, settings)
    if given:
        return given
    leads = at_least(scores.coding - scores.general, settings["coding_threshold"])
    return CODING if leads or _named_coding(model, settings) else GENERAL


def tier(size_bytes: float, settings: Mapping[str, Any]) -> str:
    """Return ``small``, ``medium`` or ``large`` by the memory that a model file of this size needs.

    settings
        Pillar ``benchmark``: ``size_overhead_factor``, ``small_max_gb`` and ``medium_max_gb`` (GB, 10^9 bytes).
    """
    memory = size_bytes / _GIGABYTE * settings["size_overhead_factor"]
    if not at_least(memory, settings["small_max_gb"]):
        return "small"
    return "medium" if at_least(settings["medium_max_gb"], memory) else "large"


def timeout(size_bytes: float, settings: Mapping[str, Any]) -> float:
    """Return the seconds that one prompt to a model of this size may take."""
    return float(settings[f"{tier(size_bytes, settings)}_timeout"])


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean; 0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
