"""A Python environment made of locked packages: which ones, their digest, and pip's arguments."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

STAMP = "requirements.sha256"


def select(requirements: str, without: Iterable[str] = (), only: Iterable[str] = ()) -> str:
    r"""Choose packages of a lock file.

    requirements
        The text: ``name==version \\`` and its ``--hash`` lines, per package.
    without
        Names to leave out.
    only
        Names to keep; all where there are none.

    Returns the chosen entries, without comments.
    """
    left_out, kept = {_normal(name) for name in without}, {_normal(name) for name in only}
    return "".join(
        f"{line}\n" for name, line in _entries(requirements) if name not in left_out and (not kept or name in kept)
    )


def names(requirements: str) -> list[str]:
    """Return the names of a lock file's packages, in their order."""
    return list(dict(_entries(requirements)))


def _entries(requirements: str) -> list[tuple[str, str]]:
    """Return each package with its line; one that has versions for several Pythons has a line for each."""
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", requirements).splitlines()]
    return [(_normal(re.split(r"[=\[;\s]", line)[0]), line) for line in lines if line and not line.startswith("#")]


def digest(selected: str, python: str) -> str:
    """Return the digest of an environment: of its locked packages and of the Python that it is made with."""
    return hashlib.sha256(f"{python}\n{selected}".encode()).hexdigest()


def pip_arguments(requirements: str, wheelhouse: str = "", build: bool = False) -> list[str]:
    """Return the arguments of ``pip`` that install exactly the locked packages.

    requirements
        Path of the lock file.
    wheelhouse
        URL or folder that holds the packages; empty for the index that pip is configured with.
    build
        Build them from source, with the tools that the environment holds; else only wheels will do.

    A file whose hash is not in the lock is refused, so that plain HTTP will do for the wheelhouse.
    """
    how = ["--no-binary=:all:", "--no-build-isolation"] if build else ["--only-binary=:all:"]
    source: list[str] = []
    if wheelhouse:
        source = ["--no-index", f"--find-links={wheelhouse}"]
        address = urlsplit(wheelhouse)
        if address.scheme == "http":
            source.append(f"--trusted-host={address.netloc}")
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    return ["install", *quiet, "--no-deps", "--require-hashes", *how, *source, "--requirement", requirements]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
