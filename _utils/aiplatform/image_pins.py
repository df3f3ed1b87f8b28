"""What an image turned out to be at its first pull: a host keeps to it, whatever the registry says of its tag later.

A tag can be moved, a digest cannot. Where pillar names an image by its version alone, the digest of what was pulled
first is written down here, and is what every later container of that version is made of.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiplatform.errors import PlatformError
from aiplatform.files import write_durably

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Pins = dict[str, dict[str, str]]


def repository(image: str) -> str:
    """Return an image's name without tag and digest: ``10.0.0.1:5000/web`` of ``10.0.0.1:5000/web:1``."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition(':')[0]}"


def is_pinned(image: str) -> bool:
    """Whether an image's name has a digest of its own, which then counts."""
    return "@" in image


def told(lines: Iterable[str]) -> str | None:
    """Return the digest that the engine tells in the course of a pull, in a line ``Digest: sha256:…``."""
    found = (line.removeprefix("Digest: ") for line in lines if line.startswith("Digest: "))
    return next((digest for digest in found if _DIGEST.fullmatch(digest)), None)


def resolve(image: str, pins: Pins) -> str:
    """Return the name by which an image is pulled and run: with the digest of its first pull, where there was one."""
    if is_pinned(image) or image not in pins:
        return image
    return f"{repository(image)}@{pins[image]['digest']}"


def read(path: Path) -> Pins:
    """Return what is written down: ``{image: {digest, since}}``, ``since`` a time in UTC.

    Raises ``PlatformError`` where the file cannot be read: without it any image would be taken for the right one.
    """
    try:
        pins: Pins = json.loads(path.read_text(encoding="utf-8"))
        unknown = [image for image, row in pins.items() if not _DIGEST.fullmatch(row["digest"])]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as err:
        raise _unreadable(path, str(err) or type(err).__name__) from err
    if unknown:
        raise _unreadable(path, f"no digest of {unknown[0]}: sha256: and 64 hex digits")
    return pins


def _unreadable(path: Path, actual: str) -> PlatformError:
    return PlatformError(
        "What images are pinned to cannot be read",
        where=str(path),
        actual=actual,
        hint="bring the file back, or name the images' digests in pillar and remove it",
    )


def keep(path: Path, image: str, digest: str) -> None:
    """Write down what an image was at its first pull; what another process has written meanwhile stays."""
    with _changed(path) as pins:
        pins.setdefault(image, _row(digest))


def replace(path: Path, image: str, digest: str | None) -> None:
    """Write down what an image is from now on; None: forget it, as if it had never been pulled."""
    with _changed(path) as pins:
        if digest is None:
            pins.pop(image, None)
        elif pins.get(image, {}).get("digest") != digest:
            pins[image] = _row(digest)


def _row(digest: str) -> dict[str, str]:
    return {"digest": digest, "since": datetime.now(UTC).isoformat(timespec="seconds")}


@contextmanager
def _changed(path: Path) -> Iterator[Pins]:
    """Give the pins to be changed, and write them where they were; phases run side by side, so one writer at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            before = read(path)
            pins = dict(before)
            yield pins
            if pins != before:
                write_durably(path, (json.dumps(pins, indent=2, sort_keys=True) + "\n").encode(), 0o644)
    except OSError as err:
        raise PlatformError("What an image is pinned to cannot be written", where=str(path), actual=str(err)) from err
