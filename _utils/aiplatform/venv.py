"""A Python environment made of locked packages: which ones, their digest, and pip's arguments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

STAMP = "requirements.sha256"


def select(requirements: str, without: Iterable[str] = ()) -> str:
    r"""Leave packages out of a lock file.

    requirements
        The text: ``name==version \\`` and its ``--hash`` lines, per package.
    without
        Names to leave out.

    Returns the entries that remain, without comments.
    """
    entries = re.sub(r"\\\n\s*", "", requirements).splitlines()
    left_out = {_normal(name) for name in without}
    kept = [line.strip() for line in entries if line.strip() and not line.lstrip().startswith("#")]
    return "".join(f"{line}\n" for line in kept if _normal(re.split(r"[=\[;\s]", line)[0]) not in left_out)


def digest(selected: str, python: str) -> str:
    """Return the digest of an environment: of its locked packages and of the Python that it is made with."""
    return hashlib.sha256(f"{python}\n{selected}".encode()).hexdigest()


def pip_arguments(requirements: str, wheelhouse: str = "") -> list[str]:
    """Return the arguments of ``pip`` that install exactly the locked packages.

    requirements
        Path of the lock file.
    wheelhouse
        URL or folder that holds the wheels; empty for the index that pip is configured with.

    Nothing is compiled on the host, and a file whose hash is not in the lock is refused, so that plain HTTP will do.
    """
    source: list[str] = []
    if wheelhouse:
        source = ["--no-index", "--find-links", wheelhouse]
        address = urlsplit(wheelhouse)
        if address.scheme == "http":
            source += ["--trusted-host", address.netloc]
    return [
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        *source,
        "--requirement",
        requirements,
    ]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
