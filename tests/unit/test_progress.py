"""The lines that a deploy shows as it goes on."""

from __future__ import annotations

import pytest

from aiplatform import progress
from aiplatform.phases import Step

STEPS = [
    Step("vault", "vault", "state", "vault", ("ai_server",)),
    Step("vault x.y", "vault", "runner", "vault_server.bootstrap", ("ai_server",), ("vault",)),
]


@pytest.fixture
def lines():
    return progress.Lines(STEPS, started=100.0)


def begun(lines, at=101.0):
    lines.of("salt/job/1/new", {"fun": "state.sls", "arg": ["vault"], "minions": ["ai_server"]}, at)


def returned(answer, fun="state.sls"):
    return {"fun": fun, "fun_args": ["vault"], "id": "ai_server", "return": answer}


def test_a_phase_that_begins_is_a_line(lines):
    new = {"fun": "state.sls", "arg": ["vault"], "minions": ["ai_server", "other"]}
    assert lines.of("salt/job/1/new", new, 161) == "[  1:01] vault        begins on ai_server, other"
    runner = {"fun": "runner.vault_server.bootstrap"}
    assert lines.of("salt/run/2/new", runner, 162).endswith("vault        begins on master")


def test_a_return_is_a_line_with_phase_host_time_and_changes(lines):
    begun(lines)
    answer = {"a": {"result": True, "changes": {"x": 1}}, "b": {"result": True, "changes": {}}}
    line = lines.of("salt/job/1/ret/ai_server", returned(answer), 165.5)
    assert line.split() == ["[", "1:05]", "vault", "ai_server", "64.5", "s", "2", "states,", "1", "changed"]


def test_a_notice_is_shown_with_its_phase(lines):
    answer = {"a": {"result": True, "changes": {}, "warnings": ["There is no token."]}}
    line = lines.of("salt/job/1/ret/ai_server", returned(answer), 101)
    assert line.endswith("1 states, 0 changed\n    NOTE: There is no token.")


def test_a_failure_is_named_at_once(lines):
    answer = {"a": {"__id__": "unit", "result": False, "changes": {}, "comment": "no space\nleft"}}
    assert "FAILED: unit: no space" in lines.of("salt/job/1/ret/ai_server", returned(answer), 101)


def test_a_failure_without_a_comment_is_a_line_too(lines):
    answer = {"a": {"__id__": "unit", "result": False, "changes": {}, "comment": ""}}
    assert "FAILED: unit: no reason given" in lines.of("salt/job/1/ret/ai_server", returned(answer), 101)


def test_a_return_that_is_no_set_of_states_is_a_failure(lines):
    assert "FAILED: no state: Pillar failed" in lines.of("salt/job/1/ret/ai_server", returned(["Pillar failed"]), 101)


def test_a_runner_counts_for_its_phase(lines):
    lines.of("salt/run/2/new", {"fun": "runner.vault_server.bootstrap"}, 101)
    line = lines.of("salt/run/2/ret", {"fun": "runner.vault_server.bootstrap", "success": True}, 103)
    assert line.split()[2:] == ["vault", "master", "2.0", "s", "done"]


@pytest.mark.parametrize(
    ("tag", "data"),
    [
        ("salt/job/1/ret/ai_server", {"fun": "test.ping", "fun_args": [], "id": "ai_server", "return": True}),
        ("salt/job/1/ret/ai_server", {"fun": "state.sls", "fun_args": ["other"], "id": "ai_server", "return": {}}),
        ("salt/auth", {}),
    ],
)
def test_other_events_say_nothing(lines, tag, data):
    assert lines.of(tag, data, 101) == ""


def test_what_is_waited_for_is_said(lines):
    assert lines.waiting(105) == ""
    begun(lines)
    assert "vault on ai_server" in lines.waiting(105)
    lines.of("salt/job/1/ret/ai_server", returned({}), 106)
    assert lines.waiting(107) == ""


def test_what_a_host_told_of_its_measuring_is_said_once(lines):
    begun(lines)
    event = {"instance": "node0", "model": "m:1", "test": "debug", "tests_done": 3, "tests": 14, "done": False}
    event |= {"tokens_per_second": 18.5, "seconds_left": 60}
    told = {"id": "ai_server", "data": event}
    assert lines.of("ai_platform/benchmark/progress", told, 101) == ""
    assert "vault on ai_server; ai_server: node0: m:1: debug (3 of 14), 18.5 tokens/s" in lines.waiting(105)
    assert "node0" not in lines.waiting(130)


def test_after_a_while_without_news_it_is_said_what_is_waited_for(lines):
    begin = {"tag": "salt/job/1/new", "data": {"fun": "state.sls", "arg": ["vault"], "minions": ["ai_server"]}}
    assert "begins on ai_server" in lines.next(begin, 101.0)
    assert lines.next(None, 101.0 + progress.QUIET) == ""
    assert "still at work: vault on ai_server" in lines.next(None, 101.5 + progress.QUIET)
    assert lines.next(None, 102.0 + progress.QUIET) == ""
