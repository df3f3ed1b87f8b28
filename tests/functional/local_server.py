"""What real servers on loopback have in common: their program, their port, their process."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

# Below net.ipv4.ip_local_port_range: a port from that range may become that of another test's outgoing connection
# between the look at it and the server's start.
_candidates = iter(random.sample(range(20000, 32000, 2), 6000))


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


def free_port() -> int:
    """A port that nothing listens on at any address, nor on its successor; the same one is not given twice."""
    return next(port for port in _candidates if _is_free(port) and _is_free(port + 1))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def launch(argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, so that what it starts can be ended with it.

    log
        The file that takes both of its outputs, after what is there.
    env
        Its whole environment; this process's own where it is left out.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(argv, env=env, stdout=stream, stderr=stream, start_new_session=True)
