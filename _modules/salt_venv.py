"""Salt in a Python environment of its own, made from locked packages.

Each set of packages gets a folder of its own (``/opt/salt-<digest>``) and ``/opt/salt`` is a link to the one in
use. So a minion that upgrades itself keeps the files it runs from until its service restarts.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from aiplatform import venv
from aiplatform.errors import PlatformError

log = logging.getLogger(__name__)

PIP_TIMEOUT = 1200


def wanted(requirements: str, python: str = "python3", without: list[str] | None = None) -> str:
    """Return the digest that an environment of these packages has.

    requirements
        Lock file with hashes: a ``salt://`` URL or a path.
    python
        The interpreter that the environment is made with.
    without
        Names of packages to leave out.

    CLI Example:

    .. code-block:: bash

        salt '*' salt_venv.wanted salt://salt_minion/files/requirements.txt
    """
    return venv.digest(_selected(requirements, without), python)


def installed(path: str) -> str:
    """Return the digest of the environment in use at ``path``; empty where there is none that works.

    CLI Example:

    .. code-block:: bash

        salt '*' salt_venv.installed /opt/salt
    """
    stamp = Path(path) / venv.STAMP
    # The interpreter inside is a link to the system's, which an upgrade of the system may have taken away.
    usable = stamp.is_file() and (Path(path) / "bin" / "python").exists()
    return stamp.read_text().strip() if usable else ""


def install(
    path: str,
    requirements: str,
    python: str = "python3",
    wheelhouse: str = "",
    without: list[str] | None = None,
    build: list[str] | None = None,
) -> str:
    """Make the environment and switch ``path`` to it.

    path
        Where the environment is found, a link; what stands there before is moved aside.
    requirements
        Lock file with hashes: a ``salt://`` URL or a path.
    python
        The interpreter to make it with.
    wheelhouse
        URL or folder that holds the packages; empty for the index that pip is configured with.
    without
        Names of packages to leave out.
    build
        Names of packages that exist as source only; the others are installed first, and build them.

    Returns the digest. Raises ``CommandExecutionError`` with what ``venv`` or ``pip`` printed.

    CLI Example:

    .. code-block:: bash

        salt '*' salt_venv.install /opt/salt salt://salt_minion/files/requirements.txt
    """
    selected = _selected(requirements, without)
    digest = venv.digest(selected, python)
    folder = Path(f"{path}-{digest[:12]}")
    if installed(str(folder)) != digest:
        _make(folder, selected, python, wheelhouse, build or [])
        # Written last: a folder without it was interrupted, and is made anew.
        (folder / venv.STAMP).write_text(f"{digest}\n")
    _switch(Path(path), folder)
    return digest


def _selected(requirements: str, without: list[str] | None) -> str:
    cached = __salt__["cp.cache_file"](requirements)
    if not cached:
        raise PlatformError("The lock file of the packages is missing", where=requirements)
    return venv.select(Path(cached).read_text(), without or [])


def _make(folder: Path, selected: str, python: str, wheelhouse: str, build: list[str]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    _run([python, "-m", "venv", str(folder)])
    _pip(folder, venv.select(selected, without=build), wheelhouse)
    if build:
        _pip(folder, venv.select(selected, only=build), wheelhouse, build=True)


def _pip(folder: Path, packages: str, wheelhouse: str, build: bool = False) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="requirements-", suffix=".txt") as lock:
        lock.write(packages)
        lock.flush()
        _run([str(folder / "bin" / "python"), "-m", "pip", *venv.pip_arguments(lock.name, wheelhouse, build)])


def _switch(path: Path, folder: Path) -> None:
    """Point ``path`` at ``folder`` in one step; keep the environment used before, remove older ones."""
    before = path.resolve()
    if path.is_dir() and not path.is_symlink():
        before = path.with_name(f"{path.name}-before")
        if before.exists():
            shutil.rmtree(before)
        path.rename(before)
    link = path.with_name(f"{path.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    # What else is called so belongs to somebody.
    own = re.compile(rf"{re.escape(path.name)}-[0-9a-f]{{12}}")
    for old in path.parent.iterdir():
        if own.fullmatch(old.name) and (old / venv.STAMP).is_file() and old not in (folder, before):
            shutil.rmtree(old)


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise PlatformError("Making a Python environment failed", where=argv[0], actual=str(err)) from err
    if done.returncode:
        raise PlatformError(
            "Making a Python environment failed",
            where=" ".join(argv[:4]),
            expected="exit 0",
            actual=f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-1500:]}",
            hint="check that the host reaches the package index, or set salt_minion.wheelhouse",
        )
