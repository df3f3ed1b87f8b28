"""The lab itself: what it takes of the machine."""

from __future__ import annotations

import subprocess

from lab.process import docker
from lab.settings import cache

GIB = 2**30


def test_the_lab_and_its_cache_stay_within_25_gib():
    """Images, containers and volumes with the cache; what is mounted within them is counted once."""
    places = [docker("info", "-f", "{{.DockerRootDir}}").strip(), str(cache())]
    # Files come and go meanwhile.
    done = subprocess.run(["du", "-scx", "-B1", *places], capture_output=True, text=True, timeout=300, check=False)
    assert int(done.stdout.splitlines()[-1].split()[0]) <= 25 * GIB, done.stdout
