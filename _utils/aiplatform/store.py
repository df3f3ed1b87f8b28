"""What the store of Ollama's models holds, asked once: a manifest's digest says all about the model, for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aiplatform import footprint, slots
from aiplatform.footprint import Shape
from aiplatform.ollama import Client, normalise, weights_digest
from aiplatform.slot_rules import Model

# Raised when what is remembered of a model changes.
FORMAT = 2
# A manifest whose name has moved on may still be loaded: so many are remembered beside those that have a name.
NAMELESS = 100


class Store:
    """The models that an instance lists, with a memory of what is known of each.

    ``/api/show`` reads the model's file, vocabulary included, and takes a tenth of a second; a host with six slots and
    their aliases would pay that some twenty times in every run that changes nothing.
    """

    def __init__(self, client: Client, memory: Path | None = None) -> None:
        """Take the client to ask, and the file to remember in (None: nothing is remembered)."""
        self._client = client
        self._memory = memory
        self._known: dict[str, dict[str, Any]] = self._remembered()
        self._tags: dict[str, dict[str, Any]] | None = None

    def refresh(self) -> None:
        """Forget the list of models: something has been pulled, created or deleted."""
        self._tags = None

    @property
    def tags(self) -> dict[str, dict[str, Any]]:
        """The models by normalised name: ``name``, ``digest`` of the manifest, ``size`` in bytes."""
        if self._tags is None:
            self._tags = {normalise(tag["name"]): tag for tag in self._client.tags()}
        return self._tags

    @property
    def digests(self) -> set[str]:
        """The digests of all manifests."""
        return {tag["digest"] for tag in self.tags.values()}

    def digest(self, model: str) -> str | None:
        """Return the digest of a model's manifest; None where the store has no such model."""
        tag = self.tags.get(normalise(model))
        return str(tag["digest"]) if tag else None

    def about(self, model: str) -> dict[str, Any] | None:
        """Return what is known of a model; None where the store has no such model.

        ``weights`` is the digest of its weights, ``answers`` whether it completes prompts, ``parent`` what it was made
        of, ``shape`` its dimensions (``footprint.Shape``); ``parameters``, ``system`` and ``template`` as
        ``slots.described`` has them.
        """
        digest = self.digest(model)
        if digest is None:
            return None
        if digest not in self._known:
            show = self._client.show(model)
            shape = footprint.shape(show.get("model_info") or {})
            self._known[digest] = {
                "weights": weights_digest(show),
                "answers": "completion" in show.get("capabilities", ["completion"]),
                "parent": show.get("details", {}).get("parent_model") or None,
                "shape": shape.as_data() if shape else None,
                **slots.described(show),
            }
            self._remember()
        return self._known[digest]

    def loaded_as(self, runner: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is known of the model that a runner (a row of ``/api/ps``) was loaded as; None where nothing is.

        Its name may stand for another one by now; the manifest's digest does not change.
        """
        name = next((name for name, tag in self.tags.items() if tag["digest"] == runner["digest"]), None)
        return self.about(name) if name else self._known.get(str(runner["digest"]))

    def weights(self, model: str) -> str | None:
        """Return the digest of a model's weights; None where the store has no such model."""
        about = self.about(model)
        return str(about["weights"]) if about else None

    def facts(self, model: str) -> Model:
        """Return what the rules of the slot table ask of a model; all of it None where the store has no such model."""
        about, tag = self.about(model), self.tags.get(normalise(model))
        if about is None or tag is None:
            return Model()
        shape = Shape.from_data(about["shape"]) if about["shape"] else None
        return Model(about["weights"], int(tag["size"]), shape, about["answers"])

    def missing(self, models: Iterable[str]) -> list[str]:
        """Return which of these models the store does not have."""
        return [model for model in models if normalise(model) not in self.tags]

    def _remembered(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._memory.read_text(encoding="utf-8")) if self._memory else {}
        except (OSError, ValueError):
            return {}  # it is only a memory: what is lost is asked again
        return dict(content["models"]) if isinstance(content, dict) and content.get("format") == FORMAT else {}

    def _remember(self) -> None:
        if self._memory is None:
            return
        nameless = [digest for digest in self._known if digest not in self.digests]
        dropped = set(nameless[:-NAMELESS])
        kept = {digest: about for digest, about in self._known.items() if digest not in dropped}
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        draft.write_text(json.dumps({"format": FORMAT, "models": kept}), encoding="utf-8")
        draft.replace(self._memory)
