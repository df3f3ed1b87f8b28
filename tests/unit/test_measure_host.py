"""Whether a host was disturbed: what is read of procfs and sysfs, and what is too much."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from aiplatform import measure_host
from aiplatform.measure_host import Reading

TICKS = measure_host.TICKS
LIMITS = {"max_steal": 0.05, "max_others": 0.10, "max_memory": 0.05, "max_slowdown": 0.15}


@pytest.fixture
def host(tmp_path):
    """A host of four CPUs: procfs and sysfs as files that a test writes."""
    proc, sysfs = tmp_path / "proc", tmp_path / "cpu"

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spend(busy=0.0, steal=0.0, cpu=0):
        spent = {n: (busy, steal) if n == cpu else (0, 0) for n in range(4)}
        rows = [f"cpu{n} {a * TICKS:.0f} 0 0 0 0 0 0 {b * TICKS:.0f} 0 0" for n, (a, b) in spent.items()]
        write(proc / "stat", "\n".join(["cpu 9 9 9 9 9 9 9 9 0 0", *rows, "intr 1"]))

    def process(pid, seconds, children=(), ended=0.0):
        times = f"{seconds * TICKS:.0f} 0 {ended * TICKS:.0f} 0"
        write(proc / f"{pid}/stat", f"{pid} (a) b) S 1 1 1 0 -1 0 0 0 0 0 {times} 20 0")
        write(proc / f"{pid}/task/{pid}/children", " ".join(map(str, children)))

    spend()
    return SimpleNamespace(proc=proc, sysfs=sysfs, spend=spend, process=process, write=write)


def test_only_the_instances_cpus_count(host):
    host.spend(busy=3.0, steal=1.0, cpu=2)
    inside = measure_host.read([1, 2], 0, host.proc, host.sysfs)
    outside = measure_host.read([0, 1], 0, host.proc, host.sysfs)
    assert (inside.busy, inside.steal, inside.own) == (3.0, 1.0, None)
    assert (outside.busy, outside.steal) == (0.0, 0.0)


def test_the_servers_own_work_is_that_of_all_its_descendants(host):
    host.process(10, 1.0, children=(11,))
    host.process(11, 2.0, children=(12,))
    host.process(12, 4.0)
    host.process(13, 8.0)
    assert measure_host.family_seconds(10, host.proc) == 7.0


def runner(host, pid, seconds, weights):
    host.process(pid, seconds)
    host.write(host.proc / f"{pid}/cmdline", f"ollama\0runner\0--model\0/models/blobs/sha256-{weights}\0--port\09\0")


def test_another_models_runner_is_not_the_measured_ones(host):
    host.process(10, 1.0, children=(11, 12))
    runner(host, 11, 2.0, "aa")
    runner(host, 12, 4.0, "bb")
    assert measure_host.family_seconds(10, host.proc, "aa") == 3.0
    assert measure_host.family_seconds(10, host.proc) == 7.0


def test_a_client_of_another_model_disturbs(host, monkeypatch):
    host.process(10, 0.0, children=(11, 12))
    runner(host, 11, 0.0, "aa")
    runner(host, 12, 0.0, "bb")

    def work():
        runner(host, 11, 16.0, "aa")
        runner(host, 12, 4.0, "bb")
        host.spend(busy=20.0)

    told = {"other programs took 20% of the CPUs' time": pytest.approx(2.0)}
    assert watch(host, monkeypatch, work, weights="aa") == told

    def come_and_go():
        host.process(10, 0.0, children=(11,), ended=4.0)
        runner(host, 11, 32.0, "aa")
        host.spend(busy=40.0)

    assert watch(host, monkeypatch, come_and_go, weights="aa") == told


def test_this_process_is_seen():
    sum(range(10**6))
    assert measure_host.family_seconds(os.getpid()) > 0


def reading(at=0.0, **more) -> Reading:
    return Reading(at, **{"busy": 0.0, "steal": 0.0, "own": 0.0, "stalled": 0.0, "throttled": 0} | more)


@pytest.mark.parametrize(
    ("after", "shares"),
    [
        (reading(10, busy=20.0, own=18.0), {"steal": 0.0, "others": 0.1, "memory": 0.0}),
        (reading(10, busy=20.0, own=21.0), {"steal": 0.0, "others": 0.0, "memory": 0.0}),
        (reading(10, steal=1.0), {"steal": 0.05, "others": 0.0, "memory": 0.0}),
        (reading(10, stalled=2.0), {"steal": 0.0, "others": 0.0, "memory": 0.2}),
        (reading(10, busy=20.0, own=None), {"steal": 0.0, "others": 0.0, "memory": 0.0}),
        (reading(0.4, steal=0.4), {}),
    ],
)
def test_shares_of_the_time(after, shares):
    assert measure_host.shares(reading(), after, 2) == pytest.approx(shares)


def watch(host, monkeypatch, change, seconds=10.0, weights="") -> dict:
    """What is found where this happens on CPUs 0 and 1 in so many seconds."""
    if not weights:
        host.process(10, 0.0)
    now = [0.0]
    monkeypatch.setattr(measure_host.time, "monotonic", lambda: now[0])
    found = measure_host.Watch([0, 1], 10, LIMITS, host.proc, host.sysfs)
    with found.over(weights):
        change()
        now[0] = seconds
    return found.disturbances()


def test_a_quiet_host_is_not_disturbed(host, monkeypatch):
    def work():
        host.process(10, 9.5)
        host.spend(busy=10.5, steal=0.9)

    assert watch(host, monkeypatch, work) == {}


def test_steal_others_and_heat_are_told_with_their_share(host, monkeypatch):
    def trouble():
        host.spend(busy=4.0, steal=2.0)
        host.write(host.sysfs / "cpu1/thermal_throttle/core_throttle_count", "3")
        host.write(host.proc / "pressure/memory", "some avg10=0.0 avg60=0.0 avg300=0.0 total=1000000\nfull total=9")

    assert watch(host, monkeypatch, trouble) == {
        "10% of the CPUs' time was stolen by other guests of the machine": pytest.approx(2.0),
        "other programs took 20% of the CPUs' time": pytest.approx(2.0),
        "programs waited for memory in 10% of the time": pytest.approx(2.0),
        "the CPUs were throttled 3 times, they were too hot": 3.0,
    }


def test_a_slower_clock_than_before_is_told(host, monkeypatch):
    monkeypatch.setattr(measure_host, "CLOCK_SECONDS", 0.001)
    path = host.sysfs / "cpu0/cpufreq/scaling_cur_freq"
    clock = measure_host.Clock(0, host.sysfs)
    slow = []
    for frequency in ("3000000", "2900000", "1500000"):
        host.write(path, frequency)
        clock.start()
        measure_host.threading.Event().wait(0.05)
        clock.stop()
        slow.append(clock.slowdown())
    assert slow == pytest.approx([0.0, 1 / 30, 0.5])
