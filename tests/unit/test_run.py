"""The report of ``make test``."""

from __future__ import annotations

import pytest

from tests import run

JUNIT = """<testsuite>
  <testcase classname="c" name="test_a_second_deploy_changes_nothing" time="{seconds}"/>
  <testcase classname="c" name="test_other" time="99"/>
</testsuite>
"""


@pytest.mark.parametrize(
    ("seconds", "told"), [(10, []), (12.5, ["test_a_second_deploy_changes_nothing: 12.5 s, 10 wanted"])]
)
def test_what_is_slower_than_wanted_is_told_and_fails_nothing(monkeypatch, tmp_path, seconds, told):
    monkeypatch.setattr(run, "ARTIFACTS", tmp_path)
    stage = run.pytest_stage("lab", "tests/lab")
    stage.junit.write_text(JUNIT.format(seconds=seconds))
    run.count(stage)
    assert (stage.passed, stage.failed, stage.slow) == (2, 0, told)
    below = run.report([stage]).splitlines()[3:]
    assert [line for line in below if line] == [f"slower than wanted: {line}" for line in told]


def test_what_all_stages_take_together_is_told():
    stages = [run.Stage(name, [], seconds=2000.0) for name in "ab"]
    assert run.report(stages).endswith("slower than wanted: all stages: 4000 s, 2700 wanted")


def test_what_failed_is_told_with_the_first_line_of_its_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ARTIFACTS", tmp_path)
    stage = run.pytest_stage("lab", "tests/lab")
    broken = '<testcase classname="c" name="test_bad"><failure message="assert 1 == 2&#10;and more"/></testcase>'
    late = '<testcase classname="c" name="test_late"><error message="no host"/></testcase>'
    stage.junit.write_text(f"<testsuite>{broken}{late}</testsuite>")
    run.count(stage)
    assert (stage.failed, stage.failures) == (2, ["c::test_bad: assert 1 == 2", "c::test_late: no host"])
