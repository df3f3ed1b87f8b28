"""The code of a model's answer, run on the host that measures: it can be right or wrong, and nothing else."""

from __future__ import annotations

import time

import pytest

from aiplatform.measure_code import SECONDS

RIGHT = """def average_positive(numbers):
    positive = [number for number in numbers if number > 0]
    return sum(positive) / len(positive) if positive else 0.0
"""
FOLDERS = (
    "/", "/tmp", "/var/tmp", "/dev", "/dev/shm", "/run", "/etc", "/usr", "/usr/lib", "/var", "/root", "/home", "/srv",
    "/proc", "/sys", ".",
)  # fmt: skip
FILES = (
    "/etc/passwd", "/etc/shadow", "/etc/salt/minion", "/etc/salt/pki/minion/minion.pem", "/root/.ssh/authorized_keys",
    "/proc/1/environ", "/proc/self/environ", "/run/systemd/private", "/var/lib/ai-platform/benchmark/results.json",
)  # fmt: skip


def function(body: str) -> str:
    """An answer whose function does this; what it returns shows in the verdict."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return f"```python\nimport os, socket\ndef average_positive(numbers):\n{lines}\n```"


@pytest.fixture
def execute(master):
    def execute(answer: str) -> dict:
        return master.salt("ai_server", "benchmark.execute", "debug", answer)["ai_server"]

    return execute


@pytest.fixture(autouse=True)
def _nothing_stays(ai_server):
    """No unit, no process and no folder is left of what ran."""
    yield
    left = ai_server.run(
        "systemctl list-units --plain --no-legend 'run-*.service'; ls -d /run/benchmark-code-*", check=False
    )
    assert left.stdout == ""
    assert ai_server.run("pgrep -fc '[j]son.load.sys.stdin' || test $? = 1").stdout.strip() == "0"


def test_right_code_passes(execute):
    assert execute(f"The mean:\n```python\n{RIGHT}```") == {"passed": True, "why": ""}


def test_code_that_loops_is_ended(execute):
    started = time.monotonic()
    assert execute(function("while True: pass")) == {"passed": False, "why": "the test was ended by timeout"}
    assert time.monotonic() - started < 3 * SECONDS


def test_code_that_forks_starts_few_processes(execute):
    """All of them, it and its children, count: what it could start before it was stopped shows."""
    body = """
children = 0
try:
    while True:
        if os.fork() == 0:
            while True: pass
        children += 1
except OSError:
    return children
"""
    why = execute(function(body))["why"]
    assert "returned" in why, why
    assert 0 < int(why.split("returned ")[1].split(",")[0]) < 16


def test_code_that_takes_memory_is_ended(execute):
    body = """
taken = []
while True: taken.append(bytearray(1 << 24))
"""
    verdict = execute(function(body))
    assert verdict["passed"] is False
    assert any(word in verdict["why"] for word in ("oom-kill", "signal", "MemoryError")), verdict


def test_code_can_write_nowhere(execute):
    body = f"""
done = []
for folder in {FOLDERS}:
    try:
        open(os.path.join(folder, "written"), "w").close()
        done.append(folder)
    except OSError:
        pass
return done
"""
    assert "returned []," in execute(function(body))["why"]


def test_code_that_says_too_much_is_ended(execute, ai_server):
    assert "ended by" in execute(function("while True: os.write(1, b'x' * 65536)"))["why"]


def test_code_opens_no_socket(execute):
    body = """
done = []
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
    try:
        done.append(str(socket.socket(family)))
    except OSError:
        pass
return done
"""
    assert "returned []," in execute(function(body))["why"]


def test_code_reads_no_file_of_the_host(execute, ai_server):
    here = [path for path in FILES if ai_server.run(["test", "-e", path], check=False).returncode == 0]
    assert len(here) >= 5
    body = f"""
done = []
for path in {here}:
    try:
        done.append(path + open(path).read()[:9])
    except OSError:
        pass
return done
"""
    assert "returned []," in execute(function(body))["why"]


def test_code_finds_nothing_in_its_environment_and_is_nobody(execute):
    told = execute(
        function("return [os.getuid() >= 61184, sorted(set(os.environ) - {'LANG', 'PATH', 'USER', 'LOGNAME'})]")
    )
    why = told["why"]
    assert "returned [true, [" in why
    assert not [word for word in ("VAULT", "TOKEN", "SECRET", "SALT") if word in why]


def test_expected_results_are_not_there_to_be_read(execute):
    body = """
import sys
frame, found = sys._getframe(), []
while frame:
    found += [name for name, value in frame.f_globals.items() if str(15 / 2) in str(value)]
    frame = frame.f_back
return found
"""
    assert "returned []," in execute(function(body))["why"]
