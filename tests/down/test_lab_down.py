"""After ``make lab-down``: nothing of the lab runs, and the cache is kept."""

from __future__ import annotations

import subprocess

from lab.machine import own_engine
from lab.settings import LABEL, folder, standing


def listed(*command: str) -> str:
    """What Docker lists; nothing where no engine answers."""
    done = subprocess.run(["docker", *command], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def test_the_engine_that_the_lab_started_has_ended():
    assert own_engine() is None


def test_no_container_volume_or_network_is_left():
    for kind in (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"]):
        assert listed(*kind, "--filter", f"label={LABEL}") == ""
    # Taken away once all of them are, even where no engine is left to ask.
    assert not standing().exists()


def test_the_cache_is_kept():
    assert list(folder("registry").iterdir())
    assert list(folder("publish").iterdir())
