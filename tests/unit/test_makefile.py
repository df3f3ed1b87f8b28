"""What make itself does, with stand-ins for all that it calls."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess

import pytest

from tests.conftest import CHECKOUT

COMMAND = """#!/bin/sh
echo "$(basename "$0") $*${HOSTILE_RESULTS:+ into $HOSTILE_RESULTS}" >> calls
[ "$2" = venv ] && mkdir -p .venv/bin && ln -sf "$0" .venv/bin/python && ln -sf "$0" .venv/bin/pip
case "$*" in $(cat fails 2>/dev/null)) exit 1 ;; esac
"""


class Checkout:
    """A checkout whose Python only notes what it is called for; what matches ``fails`` fails."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = folder / "calls"
        self.fails = folder / "fails"
        for name in ("requirements/dev.txt", "etc/configure.py"):
            (folder / name).parent.mkdir()
            (folder / name).touch()
        shutil.copy(CHECKOUT / "Makefile", folder)
        for name in ("etc/prerequisites.sh", "python"):
            (folder / name).write_text(COMMAND)
            (folder / name).chmod(0o755)

    def start(self, target):
        """Begin ``make target``, apart from a make that runs this test."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        argv = ["make", target, f"PYTHON={self.folder}/python"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(argv, cwd=self.folder, env=clean, text=True, **pipes)

    def make(self, target):
        """Run it; returns its exit code and the calls that it made."""
        self.calls.write_text("")
        with self.start(target) as process:
            process.communicate(timeout=30)
        return process.returncode, self.calls.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_of_two_makes_the_second_finds_what_the_first_has_made(checkout):
    handle = os.open(checkout.folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with checkout.start("env") as second:
        assert "waiting" in second.stdout.readline()
        (checkout.folder / ".venv").mkdir()
        (checkout.folder / ".venv/.ready").touch()
        os.close(handle)
        second.communicate(timeout=30)
    assert second.returncode == 0
    assert not checkout.calls.exists()


def test_an_environment_that_was_made_by_half_is_made_anew(checkout):
    checkout.fails.write_text("install*")
    assert checkout.make("env")[0] != 0
    checkout.fails.unlink()
    code, calls = checkout.make("env")
    assert code == 0
    assert "python -m venv --clear .venv" in calls
    assert checkout.make("env") == (0, [])


def test_other_packages_go_into_the_environment_that_is_there(checkout):
    checkout.make("env")
    ready = checkout.folder / ".venv/.ready"
    os.utime(ready, (0, 0))
    checkout.fails.write_text("install*")
    code, calls = checkout.make("env")
    assert code != 0
    assert "python -m venv .venv" in calls
    assert not ready.exists()


@pytest.mark.parametrize(("fails", "code"), [("*test_rotation*", 2), ("nothing", 0)])
def test_the_soak_goes_on_after_a_failure_and_fails_at_its_end(checkout, fails, code):
    checkout.fails.write_text(fails)
    ended, calls = checkout.make("soak")
    assert ended == code
    runs = [call.removeprefix("python -m pytest ") for call in calls if call.startswith("python -m pytest ")]
    assert runs[0] == "tests/soak/test_hostile.py into docs/hostile-soak.json"
    ran = {word for run in runs for word in run.split() if word.endswith(".py")}
    assert ran == {f"tests/soak/{path.name}" for path in (CHECKOUT / "tests/soak").glob("test_*.py")}
