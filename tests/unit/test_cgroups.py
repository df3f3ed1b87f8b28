"""What control groups count and leave, of either version of the kernel's interface."""

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


@pytest.mark.parametrize(
    ("listing", "groups", "expected"),
    [
        (
            "0::/system.slice/ollama.service\n",
            {
                "system.slice/ollama.service": {
                    "memory.max": "1200\n",
                    "memory.current": "900\n",
                    "memory.stat": "anon 500\nfile_mapped 50\nactive_file 250\ninactive_file 100\n",
                },
                "system.slice": {"memory.max": "max\n", "memory.current": "5000\n"},
            },
            600,
        ),
        (
            "4:memory:/docker/ab\n2:cpu:/docker/ab\n",
            {
                "memory/docker/ab": {
                    "memory.limit_in_bytes": "1000\n",
                    "memory.usage_in_bytes": "700\n",
                    "memory.stat": "inactive_file 0\nmapped_file 0\ntotal_mapped_file 200\n"
                    "total_active_file 100\ntotal_inactive_file 200\n",
                }
            },
            400,
        ),
        # The group above it is nearly full.
        (
            "0::/a/b\n",
            {
                "a/b": {"memory.max": "1000\n", "memory.current": "100\n"},
                "a": {"memory.max": "2000\n", "memory.current": "1900\n"},
            },
            100,
        ),
        ("0::/a\n", {"a": {"memory.max": "1000\n", "memory.current": "1100\n"}}, 0),
        ("0::/a\n", {"a": {"memory.max": "max\n", "memory.current": "1100\n"}}, None),
        ("3:memory:/a\n", {"memory/a": {"memory.limit_in_bytes": f"{2**63 - 4096}\n"}}, None),
        ("", {}, None),
    ],
)
def test_the_memory_that_is_left(tmp_path, listing, groups, expected):
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(listing)
    for folder, files in groups.items():
        (tmp_path / "groups" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / "groups" / folder / name).write_text(text)
    assert cgroups.memory_left(7, tmp_path / "proc", tmp_path / "groups") == expected
