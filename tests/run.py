"""All of ``make test``: the linters, the tests, one closing line of counts and a report of timings.

Stages run one after the other, cheapest first, and all of them run: a failure is found with everything else
that fails. Each stage's junit file and ``timings.md`` are kept in ``tests/artifacts/``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ARTIFACTS = CHECKOUT / "tests" / "artifacts"
LAB = [sys.executable, "-m", "lab"]
# The seconds that a stage or a test should take. Longer is told and fails nothing: it depends on the machine.
WANTED = {"lab-up": 1500, "test_a_second_deploy_changes_nothing": 10, "all stages": 2700}


@dataclass
class Stage:
    """One stage and what came of it: counts, seconds, why tests failed or were skipped, what was slower than wanted.

    One that takes longer than ``limit`` seconds has failed.
    """

    name: str
    command: list[str]
    is_pytest: bool = False
    needs: str | None = None
    limit: float | None = None
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    skips: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def junit(self) -> Path:
        """Where pytest writes this stage's results."""
        return ARTIFACTS / f"{self.name}.xml"


def pytest_stage(name: str, arguments: str, needs: str | None = None) -> Stage:
    """A stage of tests, by the arguments of pytest."""
    command = [sys.executable, "-m", "pytest", f"--junit-xml={ARTIFACTS / name}.xml", *shlex.split(arguments)]
    return Stage(name, command, is_pytest=True, needs=needs)


def stages() -> list[Stage]:
    """The stages in order; ``needs`` names the stage without which one cannot run.

    What waits more than it computes shares the CPUs, whole files or lanes side by side; what compares times does not.
    """
    return [
        Stage("lint", ["tests/lint.sh"]),
        pytest_stage("unit", "tests/unit --numprocesses=auto"),
        Stage("artifacts", [*LAB, "artifacts"]),
        pytest_stage(
            "servers", "tests/numa tests/functional -m 'not timed' --numprocesses=2 --dist=loadfile", "artifacts"
        ),
        pytest_stage("timed", "tests/functional -m timed", "artifacts"),
        Stage("lab-up", [*LAB, "up"], needs="artifacts"),
        Stage("lab-again", [*LAB, "up"], needs="lab-up", limit=60),
        pytest_stage("lab-timed", "tests/lab -m timed", "lab-up"),
        # Two lanes: the lab's hosts; and what needs none of them, a master and minions of its own among it
        # (tests/lab/conftest.py).
        pytest_stage(
            "lab", "tests/lab tests/integration -m 'not timed' --verbose --numprocesses=2 --dist=loadscope", "lab-up"
        ),
        Stage("lab-down", [*LAB, "down"]),
        pytest_stage("down", "tests/down", "lab-down"),
    ]


def run(stage: Stage) -> None:
    """Run one stage and fill in what came of it."""
    print(f"\n=== {stage.name}", flush=True)
    stage.junit.unlink(missing_ok=True)
    begin = time.monotonic()
    code = subprocess.run(stage.command, cwd=CHECKOUT, check=False).returncode
    stage.seconds = round(time.monotonic() - begin, 1)
    stage.slow += slower(stage.name, stage.seconds)
    if stage.is_pytest and stage.junit.exists():
        count(stage)
    late = stage.limit is not None and stage.seconds > stage.limit
    if (code or late) and not stage.failed:
        stage.failed = 1
    outcome = f"too slow ({stage.limit:g} s were allowed)" if late else "failed" if code else "ok"
    print(f"=== {stage.name}: {outcome} in {stage.seconds} s", flush=True)


def count(stage: Stage) -> None:
    """Read the counts, the reasons of skips and what was slow from the stage's junit file."""
    for case in ET.parse(stage.junit).iter("testcase"):  # noqa: S314 (written by pytest just now)
        stage.slow += slower(case.get("name", ""), float(case.get("time", 0)))
        skip = case.find("skipped")
        name = f"{case.get('classname')}::{case.get('name')}"
        broken = next((part for kind in ("failure", "error") if (part := case.find(kind)) is not None), None)
        if broken is not None:
            stage.failed += 1
            stage.failures.append(f"{name}: {(broken.get('message') or '').partition(chr(10))[0]}")
        elif skip is not None:
            stage.skipped += 1
            stage.skips.append(f"{name}: {skip.get('message')}")
        else:
            stage.passed += 1


def slower(name: str, seconds: float) -> list[str]:
    """A line where this took longer than it should."""
    return [f"{name}: {seconds:g} s, {WANTED[name]} wanted"] if seconds > WANTED.get(name, seconds) else []


def report(done: Sequence[Stage]) -> str:
    """The table of timings and counts, in Markdown, and below it what was slower than wanted."""
    rows = ["| stage | seconds | passed | failed | skipped |", "| --- | ---: | ---: | ---: | ---: |"]
    rows += [f"| {s.name} | {s.seconds} | {s.passed} | {s.failed} | {s.skipped} |" for s in done]
    slow = [line for s in done for line in s.slow] + slower("all stages", round(sum(s.seconds for s in done), 1))
    return "\n".join([*rows, *(f"\nslower than wanted: {line}" for line in slow)])


def main() -> int:
    """Run the stages; 0 where nothing failed."""
    parser = argparse.ArgumentParser(description="Run every stage of the proof.")
    parser.add_argument("--keep-lab", action="store_true", help="leave the lab running at the end")
    parser.add_argument("--only", nargs="*", help="run these stages only")
    args = parser.parse_args()
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    done: list[Stage] = []
    for stage in stages():
        if (args.only and stage.name not in args.only) or (args.keep_lab and stage.name in ("lab-down", "down")):
            continue
        if any(s.name == stage.needs and s.failed for s in done):
            stage.failed = 1
            print(f"\n=== {stage.name}: not run, because {stage.needs} failed (counted as one failure)")
        else:
            run(stage)
        done.append(stage)
    table = report(done)
    (ARTIFACTS / "timings.md").write_text(table + "\n")
    (ARTIFACTS / "timings.json").write_text(json.dumps([asdict(s) for s in done], indent=2) + "\n")
    print(f"\n{table}")
    told = [f"skipped: {line}" for s in done for line in s.skips]
    told += [f"failed: {line}" for s in done for line in s.failures]
    for line in told:
        print(line)
    passed, failed, skipped = (sum(getattr(s, key) for s in done) for key in ("passed", "failed", "skipped"))
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
