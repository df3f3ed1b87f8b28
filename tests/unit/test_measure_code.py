"""What the code of an answer does: which of it is run, and what is made of what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from aiplatform import measure_code
from aiplatform.errors import PlatformError

TESTS = {"function": "double", "cases": [{"args": [[1, 2]], "returns": [2, 4], "unchanged": True}]}
RIGHT = "Here:\n```python\ndef double(numbers):\n    return [2 * n for n in numbers]\n```\nDone."


def execute(text: str, tests=TESTS) -> measure_code.Verdict:
    """Run the harness as a plain process: what contains it is tested on a host that systemd runs."""
    task = {"function": tests["function"], "calls": [case["args"] for case in tests["cases"]]}
    task["blocks"] = measure_code.blocks(text)
    command = [sys.executable, "-I", "-c", measure_code.HARNESS]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=30, check=False)
    return measure_code.judge(tests["cases"], done.stdout.encode(), "success" if done.returncode == 0 else "exit-code")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na = 1\n```\ntext\n```\nb = 2\n```\n```bash\nrm x\n```", ["a = 1\n", "b = 2\n"]),
        ("x = 1", ["x = 1"]),
        ("```Python\nx = 1", ["x = 1"]),
        ("```bash\nls\n```", []),
        ("", [""]),
    ],
)
def test_blocks_of_an_answer(text, found):
    assert measure_code.blocks(text) == found


def test_right_code_passes():
    assert execute(RIGHT) == measure_code.Verdict(True)
    assert execute(RIGHT + "\n```python\nassert double([1]) == [3]  # its own test is wrong\n```").passed


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def double(n): return n", "returned [1, 2], expected [2, 4]"),
        ("def double(n):\n    n[:] = [2 * x for x in n]\n    return n", "the argument was changed"),
        ("def other(n): return n", "KeyError"),
        ("def double(n) return n", "KeyError"),
        ("def double(n): return {n}", "TypeError"),
        ("def double(n): return object()", "not JSON serializable"),
        ("import sys; sys.exit(0)", "KeyError"),
        ("def double(n):\n    import os\n    os._exit(3)", "ended by exit-code"),
        ("import os\ndef double(n):\n    os.write(3, b'[{\"returned\": 1}]'); os._exit(0)", "returned 1"),
        ('print(\'[{"returned": [2, 4], "arguments": [[1, 2]]}]\')', "KeyError"),
        ("def double(n):\n    n.append(n)\n    return n", "Circular"),
    ],
)
def test_wrong_code_does_not(code, why):
    verdict = execute(f"```python\n{code}\n```")
    assert not verdict.passed
    assert why in verdict.why


@pytest.mark.parametrize(
    ("expected", "actual", "equal"),
    [
        (0.3, 0.1 + 0.2, True), (0.0, 0, True), (1, True, False), ([1, [2]], [1, [2.0]], True), ([1], [1, 1], False),
        ("a", "a", True), (None, None, True), (None, 0, False), (float("nan"), float("nan"), False),
    ],
)  # fmt: skip
def test_values_are_equal_but_for_rounding(expected, actual, equal):
    assert measure_code.same(expected, actual) is equal


@pytest.mark.parametrize("output", [b"", b"{", b'"x"', b"[]", b"null"])
def test_nonsense_is_no_pass(output):
    assert not measure_code.judge(TESTS["cases"], output, "success").passed


def test_expected_results_never_enter_the_unit(monkeypatch):
    asked = []

    def run(words, stdin, **more):
        asked.append((words, stdin.read().decode()))
        return subprocess.CompletedProcess(words, 0, None, b"")

    monkeypatch.setattr(measure_code.subprocess, "run", run)
    measure_code.execute({"function": "f", "cases": [{"args": [1], "returns": "hidden"}]}, RIGHT, [0, 2])
    ((words, task),) = asked
    assert "hidden" not in task + " ".join(words)
    assert "CPUAffinity=0 2" in words
    assert not [word for word in words if "def double" in word]


def test_a_unit_that_cannot_be_started_says_nothing_about_the_code(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, None, b"Failed to connect to bus")
    monkeypatch.setattr(measure_code.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(PlatformError, match=r"Failed to connect to bus.*execute_code"):
        measure_code.execute(TESTS, RIGHT)


def test_the_suites_hidden_tests_can_be_passed(checkout):
    suite = yaml.safe_load((checkout / "benchmarks/models/suite.yaml").read_text())
    answers = {
        "code_gen": "def merge_sort(items):\n    return sorted(items)",
        "debug": "def average_positive(n):\n    p = [x for x in n if x > 0]\n    return sum(p) / len(p) if p else 0.0",
        "refactor": (
            "def paid_totals(orders):\n    found = {}\n    for o in orders:\n        if o['status'] == 'paid':\n"
            "            found[o['customer']] = found.get(o['customer'], 0) + o['amount']\n"
            "    return list(found.items())"
        ),
    }  # fmt: skip
    for name, code in answers.items():
        tests = suite["prompts"][name]["tests"]
        assert execute(code, tests) == measure_code.Verdict(True)
        assert tests["function"] in suite["prompts"][name]["prompt"]
    broken = suite["prompts"]["debug"]["prompt"].replace("returns", "")
    assert not execute(broken, suite["prompts"]["debug"]["tests"]).passed
