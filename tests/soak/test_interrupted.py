"""``make lab`` killed at several moments, and two of them at once: the next one ends with a converged platform."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from aiplatform.wait import until
from lab.topology import host
from tests.conftest import CHECKOUT

# What each moment waits for on the terminal; a line that ends with ... says that a step has begun.
HOSTS, COPY, DEPLOY = "] hosts: ...", "] checkout on the master: ...", " begins on "
# As typed in a terminal. A test's own environment has been made ready: .venv is not made anew here.
MAKE = ["make", "--old-file=.venv/.ready", "lab"]


class Run:
    """One ``make lab`` under way, in a session of its own as a terminal has it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                MAKE, cwd=CHECKOUT, env=env, stdout=stream, stderr=stream, start_new_session=True
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def reach(self, moment: str) -> None:
        """Wait until the terminal shows it."""
        until(lambda: moment in self.text or self.process.poll() is not None, 90, 0.05, f"{moment!r} of make lab")
        assert self.process.poll() is None, self.text

    def kill(self, number: signal.Signals) -> None:
        """End it with all of its process group, as a terminal that is closed does."""
        os.killpg(self.process.pid, number)
        self.process.wait(20)
        until(lambda: not alive(self.process.pid), 20, 0.05, "the processes of make lab to end")


def alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def start(tmp_path):
    """Start a ``make lab``; none is left running."""
    runs: list[Run] = []

    def call() -> Run:
        runs.append(Run(tmp_path / f"run{len(runs)}.log"))
        return runs[-1]

    yield call
    for run in runs:
        if run.process.poll() is None:
            run.kill(signal.SIGTERM)


def test_killed_at_several_moments_it_carries_on_and_two_at_once_are_told(start, master):
    # What makes each step have something to do: a host that is down, and a checkout that is half copied.
    subprocess.run(["docker", "kill", host("coredns_host").container], check=True, capture_output=True)
    master.run("rm -r /var/lib/lab/project /srv/ai-platform/salt/docker")
    for moment, number in (
        (HOSTS, signal.SIGKILL),
        (COPY, signal.SIGTERM),
        (COPY, signal.SIGKILL),
        (DEPLOY, signal.SIGKILL),
        (DEPLOY, signal.SIGTERM),
    ):
        run = start()
        run.reach(moment)
        run.kill(number)
        if number is signal.SIGTERM:
            assert "The next make lab carries on from here" in run.text
    last = start()
    last.reach("up to date")
    second = start()
    assert second.process.wait(30) != 0
    assert "The lab is busy: `lab up` of " in second.text
    assert last.process.wait(120) == 0, last.text
    assert "All phases went well." in last.text
    answer = master.runner("ai_platform.deploy")
    assert answer["retcode"] == 0, answer["failures"]
    assert {row["phase"]: row["changed"] for row in answer["phases"] if row["changed"]} == {}
