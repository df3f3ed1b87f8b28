"""What an image turned out to be at its first pull: a host keeps to it, whatever the registry says of its tag later.

A tag can be moved, a digest cannot. Where pillar names an image by its version alone, the digest of what was pulled
first is written down here, and is what every later container of that version is made of.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from aiplatform.errors import PlatformError

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


def remembered(image: str, digests: Iterable[str]) -> str | None:
    """Return the digest by which an image's registry knows what the engine has: of the last pull, as far as it tells.

    image
        Its full name with a tag.
    digests
        The engine's ``RepoDigests`` of it. An image that was loaded from a file may have none.
    """
    wanted = _familiar(repository(image))
    known = (entry.partition("@") for entry in digests)
    return next((digest for name, _, digest in known if _familiar(name) == wanted and _DIGEST.fullmatch(digest)), None)


def _familiar(name: str) -> str:
    """Return a repository as the engine shows it: without Docker Hub's own name."""
    return name.removeprefix("docker.io/").removeprefix("library/")


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


def write(path: Path, image: str, digest: str) -> str | None:
    """Write down what an image is from now on; returns the digest that was there before.

    Phases that run side by side on one host do so at once: one writer at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        pins = read(path)
        before = pins.get(image, {}).get("digest")
        if before != digest:
            pins[image] = {"digest": digest, "since": datetime.now(UTC).isoformat(timespec="seconds")}
            draft = path.with_suffix(".new")
            draft.write_text(json.dumps(pins, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(path)
    return before
