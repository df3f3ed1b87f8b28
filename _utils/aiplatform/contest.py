"""The slots of one kind and who gets them: the best, unless who holds one is as good within the noise. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from aiplatform import lasting, noise
from aiplatform.candidates import Candidate
from aiplatform.ollama import normalise


class Contest:
    """The eligible models of one kind before their slots."""

    def __init__(
        self,
        ranked: Sequence[Candidate],
        keys: Sequence[str],
        incumbents: Mapping[str, Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        """Take the models, best first, the slots' keys in their order, who holds them now, and pillar ``benchmark``."""
        self._ranked = ranked
        self._keys = keys
        self._held = [self._place_of(incumbents.get(key)) for key in keys]
        self._settings = settings
        self._known: dict[tuple[int, int], float] = {}

    def slots(self) -> dict[str, str | None]:
        """Return the model of each slot."""
        names = [None if place is None else self._ranked[place].model for place in self._places]
        return dict(zip(self._keys, names, strict=True))

    def left_out(self) -> dict[str, str]:
        """Return why each of the others got none."""
        others = [place for place in range(len(self._ranked)) if place not in self._places]
        return {self._ranked[place].model: self._why_out(place) for place in others}

    def kept(self) -> dict[str, str]:
        """Return for each slot that would have another model if ranks alone decided, why its model stays."""
        found = {}
        for index, place in enumerate(self._places):
            above = [one for one in range(place or 0) if one not in self._places[:index]]
            if place is not None and above:
                stays, other = self._ranked[place], self._ranked[above[0]]
                figures = f"composite {other.composite:.3f} against {stays.composite:.3f}"
                found[self._keys[index]] = (
                    f"{stays.model} stays: {other.model} ranks higher ({figures}), {self._odds(above[0], place)}"
                )
        return found

    @cached_property
    def _places(self) -> lasting.Places:
        return lasting.fill(len(self._ranked), self._held, self._better)

    def _better(self, challenger: int, holder: int) -> bool:
        needed: float = self._settings["choice"]["confidence"]
        return self._probability(challenger, holder) >= needed

    def _probability(self, challenger: int, holder: int) -> float:
        pair = (challenger, holder)
        if pair not in self._known:
            band = self._settings["noise"]["composite"]
            self._known[pair] = noise.probability_better(
                self._ranked[challenger].passes, self._ranked[holder].passes, band
            )
        return self._known[pair]

    def _odds(self, challenger: int, holder: int) -> str:
        needed = self._settings["choice"]["confidence"]
        return f"and is better with a probability of {self._probability(challenger, holder):.2f}; {needed:g} is needed"

    def _why_out(self, place: int) -> str:
        rank = f"rank {place + 1} of {len(self._ranked)} {self._ranked[place].kind} models"
        holders = [(one, key) for one, key in zip(self._places, self._keys, strict=True) if one is not None]
        holder, key = max(holders)
        if holder < place:
            return f"{rank}, and {len(self._keys)} slots for them"
        return f"{rank}, above {self._ranked[holder].model} in {key} {self._odds(place, holder)}"

    def _place_of(self, incumbent: Mapping[str, Any] | None) -> int | None:
        """Return the rank of who holds a slot, by its weights or, where these are not known, by its name."""
        if not incumbent:
            return None
        same = (place for place, item in enumerate(self._ranked) if _is(item, incumbent))
        return next(same, None)


def _is(item: Candidate, incumbent: Mapping[str, Any]) -> bool:
    digest = incumbent.get("weights_digest")
    if digest and item.digest:
        return str(digest).removeprefix("sha256:") == item.digest
    return normalise(item.model) == normalise(str(incumbent["model"]))
