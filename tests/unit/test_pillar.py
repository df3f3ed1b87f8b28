"""The external pillar: what a minion gets, and what is refused."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from _pillar import ai_platform
from tests.conftest import CHECKOUT


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(ai_platform, "__opts__", {"pillar_roots": {"base": [str(tmp_path)]}}, raising=False)
    return tmp_path


@pytest.fixture
def written():
    return yaml.safe_load((CHECKOUT / "pillar/platform.sls").read_text())


def compiled(written, minion="ai_server"):
    return ai_platform.ext_pillar(minion, written, formulas=str(CHECKOUT / "salt"))


def test_every_default_is_in_place(root, written):
    pillar = compiled(written)
    assert pillar["platform"]["data_root"] == "/mnt/ai_data"
    assert pillar["ollama"]["instances"]["node1"]["port"] == 11434
    assert pillar["services"]["ollama-node0"]["port"] == 11435


def test_a_minion_learns_its_roles_and_address(root, written):
    pillar = compiled(written, "coredns_host")
    assert (pillar["roles"], pillar["address"]) == (["coredns_host"], "192.0.2.29")


def test_a_stranger_has_no_roles(root, written):
    assert compiled(written, "stranger")["roles"] == []


def test_the_masters_time_is_there(root, written):
    assert abs(compiled(written)["compiled"] - time.time()) < 5


def test_the_benchmarks_choice_is_there(root, written):
    (root / "model_selection.json").write_text(json.dumps({"slot1_general": "a:1"}))
    assert compiled(written)["selection"] == {"slot1_general": "a:1"}


def test_a_data_folder_that_vaults_unit_cannot_see_is_refused_wherever_the_models_are(root, written):
    written["platform"]["data_root"] = "/home/admin/ai"
    for where in ({"models_dir": "/srv/models"}, {"mode": "container"}):
        (error,) = compiled(written | {"ollama": where})["_errors"]
        assert "platform.data_root" in error, error


def test_a_wrong_pillar_yields_nothing_but_errors(root, written):
    written["platform"]["domian"] = "x"
    pillar = compiled(written)
    assert list(pillar) == ["_errors"]
    assert "did you mean domain?" in pillar["_errors"][0]


@pytest.mark.parametrize("row", [{"model": "a:1"}, {"instance": "node1", "kind": "general", "model": "a:1"}])
def test_a_slots_number_in_quotes_is_refused_as_that(root, written, row):
    written["slots"] = {"5": row}
    assert compiled(written) == {"_errors": ["slots.5: is '5', expected the number 5 without quotes"]}


@pytest.mark.parametrize("formula", ["coredns", "keycloak", "postgres", "qdrant"])
def test_a_version_whose_digest_is_still_the_defaults_is_refused(root, written, formula):
    written[formula] = {"image": "192.0.2.1/of/ours"}
    (error,) = compiled(dict(written))["_errors"]
    assert "expected that of 192.0.2.1/of/ours:" in error
    written[formula] = {"version": "99.1"}
    (error,) = compiled(dict(written))["_errors"]
    assert f"{formula}.digest: is 'sha256:" in error
    assert ":99.1, or null" in error
    for digest in (None, f"sha256:{'a' * 64}"):
        written[formula] = {"version": "99.1", "digest": digest}
        assert compiled(dict(written))[formula]["digest"] == digest


def test_a_broken_selection_is_an_error_too(root, written):
    (root / "model_selection.json").write_text("{")
    assert "model_selection.json" in compiled(written)["_errors"][0]


def test_entries_that_the_operator_removed_are_gone_for_good(root, written):
    """Salt merges what is returned into what it has, so that must not hold the removed entry any more."""
    written |= {
        "ollama": {"instances": {"node0": None}},
        "slots": {number: {"instance": "node1", "kind": "coding"} for number in (3, 4, 6)},
    }
    pillar = compiled(written)
    assert set(pillar["ollama"]["instances"]) == {"node1"}
    assert written == {}


def test_compiling_the_compiled_pillar_again_changes_nothing(root, written):
    """As a state run on a masterless host does, whose options carry the pillar compiled before."""
    once = compiled(written)
    ai_platform.__opts__["pillar"] = once
    again = compiled(dict(once))
    assert again | {"compiled": 0} == once | {"compiled": 0}


def test_what_the_platform_adds_cannot_be_written(root, written):
    assert "roles: is " in compiled(written | {"roles": ["ai_server"]})["_errors"][0]
