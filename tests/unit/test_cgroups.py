"""What control groups count, of either version of the kernel's interface."""

from __future__ import annotations

import pytest

from aiplatform import cgroups


@pytest.mark.parametrize(
    ("listing", "folder", "file", "text", "expected"),
    [
        ("0::/system.slice/ollama.service\n", "system.slice/ollama.service", "memory.events", "oom 1\noom_kill 2\n", 2),
        (
            "4:memory:/docker/ab\n2:cpu:/docker/ab\n",
            "memory/docker/ab",
            "memory.oom_control",
            "under_oom 0\noom_kill 3\n",
            3,
        ),
        ("2:cpu,cpuacct:/docker/ab\n", "cpu,cpuacct/docker/ab", "cpu.stat", "nr_periods 9\noom_kill 4\n", 4),
        ("0::/gone\n", "other", "memory.events", "oom_kill 2\n", 0),
        ("", "other", "memory.events", "oom_kill 2\n", 0),
    ],
)
def test_a_counter(tmp_path, listing, folder, file, text, expected):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(listing)
    (tmp_path / "groups" / folder).mkdir(parents=True)
    (tmp_path / "groups" / folder / file).write_text(text)
    assert cgroups.counter(7, file, "oom_kill", tmp_path / "proc", tmp_path / "groups") == expected
