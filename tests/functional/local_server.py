"""What real servers on loopback have in common: their program, their port, their process."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


def program(name: str, variable: str, default: Path) -> Path:
    """The program that the tests run; skips where there is none.

    name
        What people call the server.
    variable
        The environment variable that may name another program than ``default``.
    """
    path = Path(os.environ.get(variable) or default)
    if not os.access(path, os.X_OK):
        pytest.skip(f"no {name} at {path}: run `python -m lab artifacts`, or name one in {variable}")
    return path


def free_port(address: str = "127.0.0.1") -> int:
    """A port of a loopback address that nothing listens on."""
    with socket.socket() as unused:
        unused.bind((address, 0))
        return int(unused.getsockname()[1])


def launch(argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, so that what it starts can be ended with it.

    log
        The file that takes both of its outputs, after what is there.
    env
        Its whole environment; this process's own where it is left out.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(argv, env=env, stdout=stream, stderr=stream, start_new_session=True)
