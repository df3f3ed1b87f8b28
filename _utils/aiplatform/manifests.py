"""The files of a store of Ollama's models, for where no instance serves it."""

from __future__ import annotations

from pathlib import Path

from aiplatform.ollama import DEFAULT_REGISTRY, normalise


def path(store: Path, model: str) -> Path:
    """Return the file of a model's manifest, as Ollama 0.17 writes it; it is there where the store has the model.

    Ollama knows a name by any spelling, and its file has the one it was first pulled or created by.

    store
        The folder: ``OLLAMA_MODELS`` of its instances.
    model
        Its name. The file is ``manifests/<registry>/<namespace>/<model>/<tag>``; of a model that is not there, beside
        what is.
    """
    where, _, tag = normalise(model).rpartition(":")
    parts = where.split("/")
    implied = [DEFAULT_REGISTRY, "library"][: max(0, 3 - len(parts))]
    found = [store / "manifests"]
    for part in [*implied, *parts, tag]:
        # One spelling of a model may have another tag than the wanted: all are followed.
        found = [path for folder in found for path in _spelled(folder, part)] or [found[0] / part]
    return found[0]


def _spelled(folder: Path, name: str) -> list[Path]:
    """Return what a folder holds under a name (in lower case), however it is spelled."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.lower() == name)
    except (FileNotFoundError, NotADirectoryError):
        return []
