"""Steps: order, what is skipped, what stops at a failure, one lab at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from aiplatform import wait
from lab import settings, steps
from lab.settings import LabError
from lab.steps import Step


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def recording(done: list[str], title: str, needs: tuple[str, ...] = (), fresh=None) -> Step:
    def act() -> str:
        done.append(title)
        return ""

    return Step(title, do=act, fresh=lambda: fresh, needs=needs)


def test_a_step_runs_after_what_it_needs():
    done: list[str] = []
    chain = [recording(done, "c", ("b",)), recording(done, "b", ("a",)), recording(done, "a")]
    steps.run_steps(chain)
    assert done == ["a", "b", "c"]


def test_steps_that_need_nothing_of_each_other_run_side_by_side():
    meet = threading.Barrier(2, timeout=5)
    both = [Step(name, do=lambda: str(meet.wait())) for name in "ab"]
    steps.run_steps(both)  # one after the other, the barrier would break


def test_an_up_to_date_step_is_skipped_and_says_so(capsys):
    done: list[str] = []
    steps.run_steps([recording(done, "a", fresh="as it was")])
    assert done == []
    assert "[ 1/1] a: up to date: as it was" in capsys.readouterr().out


def test_after_a_failure_nothing_further_starts(capsys):
    done: list[str] = []

    def fail() -> str:
        raise LabError("no disk")

    with pytest.raises(LabError, match="no disk"):
        steps.run_steps([Step("a", do=fail), recording(done, "b", ("a",))])
    assert done == []
    assert "a: failed" in capsys.readouterr().out


def test_a_need_that_no_step_meets_is_a_mistake_in_the_lab_itself():
    with pytest.raises(ValueError, match="need what is not there"):
        steps.run_steps([recording([], "a", ("nothing",))])


@pytest.mark.parametrize(("seconds", "text"), [(4.04, "4.0 s"), (59.96, "60.0 s"), (71, "1 min 11 s")])
def test_elapsed(seconds, text):
    assert steps.elapsed(seconds) == text


def test_a_second_lab_is_refused_with_who_holds_the_lock():
    script = "from lab.steps import lock\nwith lock('up'): pass"
    with steps.lock("up"):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=settings.CHECKOUT, capture_output=True, text=True, check=False
        )
    assert done.returncode
    assert f"process {os.getpid()}" in done.stderr
    with steps.lock("down"):
        pass  # free again


def test_the_lock_goes_with_its_holder():
    script = "import os\nfrom lab.steps import lock\nwith lock('up'): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], cwd=settings.CHECKOUT, check=False)
    with steps.lock("up"):
        pass


def test_an_interruption_ends_the_commands_under_way(tmp_path):
    """A real process, a real signal: the command it waits for must not be left behind."""
    script = f"""
import signal, sys
from lab import cli, process, steps
def slow():
    return process.run(["sh", "-c", "echo $$ > {tmp_path}/pid; exec sleep 60"])
cli.run_command = lambda _args: steps.run_steps([steps.Step("slow", do=slow)])
sys.argv = ["lab", "up"]
sys.exit(cli.main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=settings.CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 20, 0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
