"""What the store of Ollama's models holds, asked once: a manifest's digest says all about the model, for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiplatform import slots
from aiplatform.ollama import Client, normalise, weights_digest

# Raised when what is remembered of a model changes.
FORMAT = 1


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
        of; ``parameters``, ``system`` and ``template`` as ``slots.described`` has them.
        """
        digest = self.digest(model)
        if digest is None:
            return None
        if digest not in self._known:
            show = self._client.show(model)
            self._known[digest] = {
                "weights": weights_digest(show),
                "answers": "completion" in show.get("capabilities", ["completion"]),
                "parent": show.get("details", {}).get("parent_model") or None,
                **slots.described(show),
            }
            self._remember()
        return self._known[digest]

    def weights(self, model: str) -> str | None:
        """Return the digest of a model's weights; None where the store has no such model."""
        about = self.about(model)
        return str(about["weights"]) if about else None

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
        kept = {digest: about for digest, about in self._known.items() if digest in self.digests}
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        draft = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        draft.write_text(json.dumps({"format": FORMAT, "models": kept}), encoding="utf-8")
        draft.replace(self._memory)
