"""Whether one measured model is better than another by more than the noise of measuring. Pure, and the same each time.

What repeats are: each pass over the suite gives a model one set of figures, and so one composite. Pass n of one model
and pass n of another are a pair: the same prompts with the same seed, so that what the prompts do to both cancels.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence

from aiplatform import scoring

DRAWS = 1000
_NORMAL = statistics.NormalDist()
# A lead of just the band, between models whose repeats show no spread, is this probable to be a true one.
_AT_THE_BAND = 0.95


def composites(
    figures: Mapping[str, float], repeats: Sequence[Mapping[str, float]], kind: str, ceiling: float
) -> list[float]:
    """Return a model's composite for each pass over the suite; one of its figures where it has no repeats.

    figures
        The model's own figures, ``tokens_per_second``, ``ttft_ms`` and both qualities; they stand in for what a pass
        lacks.
    repeats
        One mapping a pass, in the order measured.
    kind
        Which of the two composites.
    ceiling
        Tokens per second that earn the full mark.
    """
    passes = [{key: one.get(key, value) for key, value in figures.items()} for one in repeats] or [dict(figures)]
    return [scoring.composite(ceiling=ceiling, **one).of(kind) for one in passes]


def probability_better(
    challenger: Sequence[float], incumbent: Sequence[float], band: float, draws: int = DRAWS
) -> float:
    """Return how probable it is that the challenger's composite is the higher one, 0 to 1.

    A paired bootstrap: the differences of the pairs are drawn with replacement, again and again, and the share of draws
    whose mean is above 0 is the answer. Two things are added to each draw, because a few repeats of one run say too
    little about the next run. The spread of n pairs is widened as Student's distribution has it for n - 1 degrees of
    freedom. And each run as a whole differs from the next (``band``), which no repeat within a run shows.

    challenger, incumbent
        The composites of the passes. Passes that only one of them has are left out.
    band
        The largest difference of one model's composite between two runs that is noise. Taken as normal, with 0.95 of
        it below the band: so a lead of the whole band has a probability of 0.95, where the repeats show no spread.
    draws
        How many means are drawn.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 8.3 and 13.3.
    """
    differences = [one - other for one, other in zip(challenger, incumbent, strict=False)]
    mean = statistics.fmean(differences)
    spread = band / _NORMAL.inv_cdf(_AT_THE_BAND)
    if len(differences) == 1:
        return _above_zero(mean, spread)
    # Figures must not depend on the order in which models are compared, nor change from call to call.
    source = random.Random(len(differences))  # noqa: S311 - draws of a simulation, no secret
    leads = (mean + _drawn(differences, mean, source) for _ in range(draws))
    return statistics.fmean(_above_zero(lead, spread) for lead in leads)


def _above_zero(lead: float, spread: float) -> float:
    """Return the probability that a lead with this standard deviation is above 0."""
    if not spread:
        # Two equal models without any noise are as good as each other.
        return 0.5 if lead == 0 else float(lead > 0)
    return _NORMAL.cdf(lead / spread)


def _drawn(differences: Sequence[float], mean: float, source: random.Random) -> float:
    """Return how far one resampled mean lies from ``mean``."""
    count = len(differences)
    away = statistics.fmean(source.choices(differences, k=count)) - mean
    freedom = count - 1
    # The factor of small samples, and what is not known of the spread itself (chi-squared).
    return away * math.sqrt(count / freedom) * math.sqrt(freedom / source.gammavariate(freedom / 2, 2))
