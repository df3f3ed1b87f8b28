"""What an orchestration returned, read for people."""

from __future__ import annotations

import pytest

from aiplatform import outcome
from aiplatform.errors import PlatformError
from aiplatform.phases import Step

STEP = Step("vault", "vault", "state", "vault", ("ai_server", "nginx_proxy"))
RUNNER = Step("vault x.y", "vault", "runner", "x.y", ("ai_server",), ("vault",))


def state(name, result=True, changes=None, **more):
    return {"__id__": name, "result": result, "changes": changes or {}, "comment": f"{name} said", **more}


def answered(result, hosts=None, **more):
    changes = {"ret": hosts} if hosts else {}
    return {"result": result, "changes": changes, "comment": "c", "duration": 1500, **more}


def rows(result, step=STEP):
    return outcome.rows([step], {step.id: result})


def test_hosts_without_changes_are_fine():
    found, failures = rows(answered(True))
    assert [(row.host, row.result, row.changed, row.seconds) for row in found] == [
        ("ai_server", "ok", [], 1.5),
        ("nginx_proxy", "ok", [], 1.5),
    ]
    assert failures == []


def test_changed_states_are_named():
    answer = {"a": state("unit", changes={"diff": "x"}), "b": state("user")}
    found, _ = rows(answered(True, {"ai_server": answer}))
    assert [(row.result, row.changed) for row in found] == [("changed", ["unit"]), ("ok", [])]


def test_a_dry_run_says_what_would_change():
    found, failures = rows(answered(None, {"ai_server": {"a": state("unit", None, {"diff": "x"})}}))
    assert (found[0].result, found[0].changed, failures) == ("would change", ["unit"], [])


def test_a_notice_of_a_state_is_found():
    answer = {"a": state("skipped", warnings=["There is no token.\n"]), "b": state("unit")}
    assert outcome.notices_of(answer) == ["There is no token."]


def test_a_failure_names_phase_host_state_and_reason():
    answer = {"a": state("unit", False), "b": state("after", False, __state_ran__=False)}
    found, failures = rows(answered(False, {"ai_server": answer}))
    assert [row.result for row in found] == ["FAILED", "ok"]
    assert failures == [outcome.Failure("vault", "ai_server", "unit", "unit said")]


def test_a_minion_that_is_down_is_named():
    found, failures = rows(answered(False, {"nginx_proxy": False}))
    assert [row.result for row in found] == ["ok", "FAILED"]
    assert "minion nginx_proxy did not answer" in failures[0].reason


def test_a_refused_pillar_is_the_reason():
    _, failures = rows(answered(False, {"ai_server": ["Pillar failed", "key: is 5"]}))
    assert failures[0].reason == "Pillar failed; key: is 5"


def test_a_step_that_salt_refused_fails_on_every_host():
    found, failures = rows(answered(False))
    assert {row.result for row in found} == {"FAILED"}
    assert {failure.reason for failure in failures} == {"c"}


def test_a_failed_step_without_any_failed_state_is_no_success():
    found, failures = rows(answered(False, {"ai_server": {}}))
    assert {row.result for row in found} == {"FAILED"}
    assert {failure.reason for failure in failures} == {"c"}


def test_what_waited_for_a_failed_step_was_not_run():
    found, failures = rows(answered(False, __state_ran__=False))
    assert {row.result for row in found} == {"not run"}
    assert failures == []


def test_a_step_without_a_result_was_not_run():
    found, _ = outcome.rows([STEP], {})
    assert not any(row.good for row in found)


@pytest.mark.parametrize(
    ("result", "changes", "wanted"),
    [(True, {}, "ok"), (True, {"policy": 1}, "changed"), (None, {"policy": 1}, "would change"), (False, {}, "FAILED")],
)
def test_a_runner_counts_on_the_master(result, changes, wanted):
    found, failures = rows({"result": result, "changes": changes, "comment": "why"}, RUNNER)
    assert (found[0].host, found[0].result) == ("master", wanted)
    assert [failure.reason for failure in failures] == (["why"] if wanted == "FAILED" else [])


def test_states_are_found_by_their_id():
    answer = {"data": {"m_master": {"salt_|-vault_|-vault_|-state": state("vault")}}}
    assert list(outcome.by_id(answer)) == ["vault"]


def test_an_orchestration_that_did_not_render_says_why():
    with pytest.raises(PlatformError, match="actual: Rendering SLS failed: x"):
        outcome.by_id({"data": {"m_master": ["Rendering SLS failed: x"]}})


@pytest.mark.parametrize(
    ("sites", "address"),
    [
        ([], "https://192.0.2.1:8202"),
        ([{"url": "https://vault.example.com", "entry": "ai-admin"}], "https://vault.example.com  ai-admin"),
    ],
)
def test_the_summary_has_all_an_operator_asks_for(sites, address):
    answer = {"a": state("unit", False)}
    found, failures = rows(answered(False, {"ai_server": answer}))
    text = outcome.summary(
        {
            "retcode": 1,
            "test": False,
            "seconds": 2.5,
            "phases": outcome.as_data(found),
            "failures": outcome.as_data(failures),
            "urls": {"vault": "https://192.0.2.1:8202"},
            "sites": sites,
            "slots": [{"slot": 1, "instance": "node1", "kind": "general", "model": "a:1"}],
        }
    )
    for part in ("phase vault, host ai_server, state unit:", "unit said", address, "a:1", "2.5 s"):
        assert part in text
