"""Host settings: what differs, what cannot be set here, and that a dry run writes nothing."""

from __future__ import annotations

import os

import pytest

from _states import ollama as state
from aiplatform import tuning
from aiplatform.errors import PlatformError
from tests.unit.sysfs_trees import write

SETTINGS = {
    "sysctl": {"vm.swappiness": 1, "kernel.numa_balancing": 0},
    "transparent_hugepages": "madvise",
    "cpu_governor": "performance",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A host whose settings all differ."""
    write(tmp_path / "proc/sys/vm/swappiness", "60")
    write(tmp_path / "proc/sys/kernel/numa_balancing", "1")
    write(tmp_path / tuning.HUGE_PAGES, "[always] madvise never")
    for cpu in (0, 1):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave")
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    return tmp_path


def test_what_differs_is_reported_and_written(root):
    outcome = tuning.compare(tuning.files(SETTINGS, root))
    assert outcome.changes()[str(root / "proc/sys/vm/swappiness")] == {"old": "60", "new": "1"}
    assert outcome.changes()[str(root / tuning.HUGE_PAGES)] == {"old": "always", "new": "madvise"}
    assert len(outcome.changes()) == 5
    tuning.apply(outcome)
    assert (root / "proc/sys/vm/swappiness").read_text() == "1"
    # The kernel would show the choice in brackets.
    write(root / tuning.HUGE_PAGES, "always [madvise] never")
    assert tuning.compare(tuning.files(SETTINGS, root)).changes() == {}


def test_what_the_host_has_not_got_is_skipped_and_said(tmp_path):
    outcome = tuning.compare(tuning.files(SETTINGS, tmp_path))
    assert outcome.changes() == {}
    assert len(outcome.skipped) == 4
    assert "scaling_governor skipped: No such file" in outcome.notes()


def test_what_is_read_only_is_skipped_and_said(root, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: "swappiness" not in str(path))
    outcome = tuning.compare(tuning.files(SETTINGS, root))
    assert outcome.notes().endswith("vm/swappiness skipped: read-only, stays 60")
    assert len(outcome.changes()) == 4


def test_settings_may_be_left_alone(root):
    assert tuning.files({"sysctl": {}, "transparent_hugepages": None, "cpu_governor": None}, root) == {}


def test_a_refusal_of_the_kernel_is_named(root):
    path = root / "proc/sys/vm/swappiness"
    outcome = tuning.Outcome(wanted={path / "absent": ("60", "1")})
    with pytest.raises(PlatformError, match="refused a setting"):
        tuning.apply(outcome)


@pytest.mark.parametrize("test", [True, False])
def test_the_state_predicts_what_it_then_does(root, monkeypatch, test):
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    monkeypatch.setattr(tuning, "files", lambda settings: FILES(settings, root))
    ret = state.host_tuned("tuning", SETTINGS)
    assert ret["result"] is (None if test else True)
    assert len(ret["changes"]) == 5
    assert (root / "proc/sys/vm/swappiness").read_text().strip() == ("60" if test else "1")


FILES = tuning.files
