"""The files of a store of Ollama's models, for where no instance serves it."""

from __future__ import annotations

from pathlib import Path

from aiplatform.ollama import DEFAULT_REGISTRY, normalise


def path(store: Path, model: str) -> Path:
    """Return the file of a model's manifest, as Ollama 0.17 writes it; it is there where the store has the model.

    store
        The folder: ``OLLAMA_MODELS`` of its instances.
    model
        Its name. The file is ``manifests/<registry>/<namespace>/<model>/<tag>``.
    """
    where, _, tag = normalise(model).rpartition(":")
    parts = where.split("/")
    implied = [DEFAULT_REGISTRY, "library"][: max(0, 3 - len(parts))]
    return store.joinpath("manifests", *implied, *parts, tag)
