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
    assert run.report(stages).endswith("slower than wanted: all stages: 4000 s, 3600 wanted")
