"""A rotation on the master: what is refused before anything is written, and what is told afterwards."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import yaml
from werkzeug import Response

from _modules import model_slots
from _runners import ai_platform
from aiplatform import numa, registry, rotation, settings, slot_status
from aiplatform.errors import PlatformError
from aiplatform.slot_rules import Model
from aiplatform.slots import Alias, Resident
from tests.conftest import CHECKOUT

SELECTION = {"slot1_general": "a:1", "slot5_general_rotate": "c:1", "all_metrics": {"a:1": {"category": "general"}}}


@pytest.fixture
def pillar():
    written = yaml.safe_load((CHECKOUT / "pillar/platform.sls").read_text())
    found = settings.effective(written, CHECKOUT / "salt") | {"selection": SELECTION, "origins": {}}
    found["aliases"] = {name: row for name, row in found["aliases"].items() if name != "embedding"}
    return found


@pytest.mark.parametrize("text", [None, "null", "None", "", "~"])
def test_null_is_no_model(text):
    assert rotation.parse(5, text) == (5, None)


@pytest.mark.parametrize("slot", [1, "4", 7, "five"])
def test_only_rotating_slots_rotate(slot):
    with pytest.raises(PlatformError, match="expected: 5 or 6"):
        rotation.parse(slot, "a:1")
    assert rotation.parse("slot-6", " a:1 ") == (6, "a:1")


@pytest.mark.parametrize(
    ("model", "why"),
    [("mistral", "with its tag"), ("A:1", "slot-1 holds these weights"), ("slot-1:latest", "the name of a slot"),
     ("qwen-coder:7b", "of kind coding")],
)  # fmt: skip
def test_what_pillar_alone_forbids_is_refused(pillar, model, why):
    with pytest.raises(PlatformError, match=why):
        rotation.wanted(pillar, 5, model, force=False)


def test_force_takes_the_other_kind_and_nothing_else(pillar):
    before = copy.deepcopy(pillar)
    assert rotation.wanted(pillar, 5, "qwen-coder:7b", force=True)["slots"][5]["model"] == "qwen-coder:7b"
    with pytest.raises(PlatformError, match="slot-1 holds"):
        rotation.wanted(pillar, 5, "a:1", force=True)
    assert pillar == before


# -- the runner ---------------------------------------------------------------------------------------------------


@pytest.fixture
def master(pillar, tmp_path, monkeypatch):
    """The runner on a master with one AI server, which answers from a table."""
    (tmp_path / "slots.sls").write_text("slots:\n  5: {model: null}  # ours\n")
    answers = {"model_slots.misfits": {"ai_server": []}, "state.high": {"ai_server": applied()}}
    answers["state.apply"] = {"ai_server": applied(comment="as wanted")}
    answers["saltutil.refresh_pillar"] = {"ai_server": True}
    asked = []

    def execute(hosts, function, arg=(), tgt_type="glob", kwarg=None):
        asked.append((function, *arg, kwarg))
        return answers[function]

    opts = {"cachedir": str(tmp_path), "pillar_roots": {"base": [str(tmp_path)]}, "output": "json"}
    monkeypatch.setattr(ai_platform, "__opts__", opts, raising=False)
    monkeypatch.setattr(ai_platform, "__context__", {}, raising=False)
    monkeypatch.setattr(ai_platform, "__salt__", {"salt.execute": execute}, raising=False)
    monkeypatch.setattr(ai_platform.settings, "load", lambda _: pillar)
    ai_platform.answers, ai_platform.asked, ai_platform.file = answers, asked, tmp_path / "slots.sls"
    return ai_platform


def applied(
    result=True, comment="slot-5 load 1.5 s at 9.0, slot-5 answer 0.25 s at 8000000000.0, slot-5 move 0 s at 9000000000"
):
    state = {
        "__id__": "models-node1",
        "__run_num__": 2,
        "result": result,
        "changes": {"slot-5": {}},
        "comment": comment,
    }
    pulled = {"__id__": "models-pulled", "__run_num__": 0, "result": True, "changes": {}, "duration": 2500.0}
    return {"b": state, "a": pulled}


def test_a_rotation_writes_pillar_applies_models_and_tells_the_phases(master):
    answer = master.rotate(5, "mistral:7b")
    assert (answer["retcode"], answer["model"], answer["names"]) == (0, "mistral:7b", ["slot-5"])
    assert yaml.safe_load(master.file.read_text()) == {"slots": {5: {"model": "mistral:7b"}}}
    assert "# ours" in master.file.read_text()
    called = [call[0] for call in master.asked]
    assert called == ["model_slots.misfits", "state.high", "state.apply", "saltutil.refresh_pillar"]
    assert list(master.asked[1][1]) == ["models-pulled", "models-node1"]
    assert master.asked[0][-1] == {"slot": 5, "model": "mistral:7b", "force": False}
    assert [(row["phase"], row["seconds"]) for row in answer["phases"]["ai_server"]] == [
        ("pull and check", 2.5), ("load", 1.5), ("answer", 0.25), ("move", 0.0)
    ]  # fmt: skip
    assert answer["in_place"] > answer["first_token"] > 1e9
    assert "slot-5: mistral:7b; first token" in rotation.text(answer)


def test_null_gives_the_slot_back(master):
    master.rotate(5, "mistral:7b", force=True)
    assert yaml.safe_load(master.file.read_text())["slots"][5] == {"model": "mistral:7b", "force": True}
    assert master.rotate("5", "null")["model"] == "c:1"
    assert yaml.safe_load(master.file.read_text())["slots"][5] == {"model": None}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"ai_server": ["There is no model mistral:7b"]}, "There is no model"),
        ({}, "no answer"),
        ({"ai_server": "ERROR: broken"}, "ERROR: broken"),
    ],
)
def test_what_a_host_refuses_is_not_written(master, answer, why):
    master.answers["model_slots.misfits"] = answer
    before = master.file.read_text()
    refused = master.rotate(5, "mistral:7b")
    assert refused["retcode"] == 1
    assert why in refused["error"]
    assert "nothing was changed" in refused["error"]
    assert master.file.read_text() == before
    assert [call[0] for call in master.asked] == ["model_slots.misfits"]


def test_a_dry_run_writes_nothing(master):
    before = master.file.read_text()
    answer = master.rotate(5, "mistral:7b", test=True)
    assert (answer["retcode"], answer["test"]) == (0, True)
    assert master.file.read_text() == before
    assert [call[0] for call in master.asked] == ["model_slots.misfits"]


def test_a_dry_run_does_not_read_like_a_rotation(master):
    text = rotation.text(master.rotate(5, "mistral:7b", test=True))
    assert text.startswith("slot-5: would be mistral:7b; ")
    assert f"{master.file} was not written" in text
    real = master.rotate(5, "mistral:7b")
    assert real["test"] is False
    assert "would be" not in rotation.text(real)


def test_a_failure_says_what_still_serves_and_that_it_can_be_run_again(master):
    why = "mistral:7b did not get into slot-5: no memory; next: slot-5 still serves c:1"
    master.answers["state.high"] = {"ai_server": applied(result=False, comment=why)}
    answer = master.rotate(5, "mistral:7b")
    assert answer["retcode"] == 1
    assert "slot-5 still serves c:1" in rotation.text(answer)
    assert "the same command again carries on" in rotation.text(answer)
    assert "state.apply" not in [call[0] for call in master.asked]
    master.answers["state.high"] = {}
    assert "did not answer" in rotation.text(master.rotate(5, "mistral:7b"))


def test_a_failure_of_the_rest_of_the_phase_is_told(master):
    master.answers["state.apply"] = {"ai_server": applied(result=False, comment="no warm-up")}
    answer = master.rotate(5, "mistral:7b")
    assert answer["retcode"] == 1
    assert "no warm-up" in rotation.text(answer)
    assert answer["first_token"] is not None


def test_a_pillar_that_does_not_compile_with_it_is_put_back(master, pillar, monkeypatch):
    before, loads = master.file.read_text(), []

    def load(_):
        loads.append(1)
        if len(loads) > 1:
            raise PlatformError("The pillar is refused")
        return pillar

    monkeypatch.setattr(master.settings, "load", load)
    master.answers["state.high"] = {"ai_server": ["Pillar failed to render"]}
    assert master.rotate(5, "mistral:7b")["error"] == "The pillar is refused"
    assert master.file.read_text() == before


# -- the host's part ----------------------------------------------------------------------------------------------


def test_a_host_names_why_a_model_cannot_go_in(pillar, monkeypatch):
    facts = {"a:1": Model("w" * 64, 2**30), "copy:1": Model("w" * 64, 2**30), "huge:1": Model("h" * 64, 2**50)}

    def known(model, store):
        if model not in facts:
            raise registry.ModelNotFound(f"There is no model {model}")
        return facts[model]

    outgoing = type("Serving", (), {"outgoing": lambda _: 0, "staying": lambda _: 0})()
    plan = {
        name: {"node": number, "memory": 64 * 2**30, "num_thread": 8} for number, name in enumerate(["node0", "node1"])
    }
    limits = {"memory": None}
    salt = {"pillar.items": lambda unmask: pillar, "numa.plan": lambda: plan}
    salt["numa.topology"] = lambda: {"limits": limits}
    for name, value in (("__salt__", salt), ("__pillar__", pillar), ("_facts", known), ("_store", lambda: None),
                        ("_serving", lambda *_: outgoing)):  # fmt: skip
        monkeypatch.setattr(model_slots, name, value, raising=False)
    facts["c:1"] = Model("c" * 64, 2**30)
    assert model_slots.misfits(5, None) == []
    assert "There is no model gone:1" in model_slots.misfits(5, "gone:1")[0]
    assert "slot-1 holds these weights as a:1" in model_slots.misfits(5, "copy:1")[0]
    assert "models that fit NUMA node 1, which has 62.0 GiB" in model_slots.misfits(5, "huge:1")[0]
    limits["memory"] = 3 * 2**30
    assert "the control group of all services, which has 1.0 GiB" in model_slots.misfits(5, None)[0]


# -- the registry and the status ----------------------------------------------------------------------------------


def test_a_registry_is_asked_for_weights_and_size(httpserver):
    layers = [{"mediaType": registry.WEIGHTS, "digest": "sha256:" + "a" * 64, "size": 5},
              {"mediaType": "application/vnd.ollama.image.projector", "digest": "sha256:b", "size": 2}]  # fmt: skip
    httpserver.expect_request("/v2/library/m/manifests/Q4").respond_with_json({"layers": layers})
    httpserver.expect_request("/v2/library/odd/manifests/1").respond_with_json({"layers": []})
    httpserver.expect_request("/v2/library/shut/manifests/1").respond_with_data("", status=401)
    host = f"127.0.0.1:{httpserver.port}"
    assert registry.ask(f"{host}/library/m:Q4", [host]) == registry.Remote("a" * 64, 7)
    for name, error, why in (
        ("odd:1", registry.RegistryDown, "of no model"),
        ("shut:1", registry.RegistryDown, "HTTP 401"),
        ("none:1", registry.ModelNotFound, "There is no model"),
    ):
        httpserver.expect_request("/v2/library/none/manifests/1").respond_with_data("", status=404)
        with pytest.raises(error, match=why):
            registry.ask(f"{host}/library/{name}", [host])
    with pytest.raises(registry.RegistryDown, match="does not answer"):
        registry.ask("127.0.0.1:1/library/m:1", ["127.0.0.1:1"])


@pytest.mark.parametrize("silent", [True, False])
def test_the_rate_of_a_slow_line_is_known_in_time(httpserver, silent):
    over = threading.Event()

    def slowly():
        yield b"x" * 100
        while not over.wait(5 if silent else 0.02):
            yield b"x"

    httpserver.expect_request(f"/v2/library/m/blobs/sha256:{'a' * 64}").respond_with_handler(
        lambda _: Response(slowly())
    )
    host = f"127.0.0.1:{httpserver.port}"
    started = time.monotonic()
    rate = registry.rate(f"{host}/library/m:1", "a" * 64, [host], seconds=0.2)
    over.set()
    assert time.monotonic() - started < 1
    assert 100 < rate < 1000


def test_a_status_row_says_all_that_a_person_asks(pillar, monkeypatch):
    pillar["selection"]["all_metrics"]["a:1"] = {"avg_tok_per_sec": 12.3}
    monkeypatch.setattr(numa, "residency", lambda pid, node: {"local_share": 0.987654})
    monkeypatch.setattr(slot_status, "since", lambda pid: "2026-05-01 10:00:00 UTC")
    one = Resident("slot-1", "k", "node1", "a:1", 8192, 8, 1, "general", None, (Alias("llama-family"),))
    runner = {"context_length": 8192, "size": 3 * 2**30}
    row = slot_status.row(one) | slot_status.facts(one, "d" * 64, runner, {"d" * 64: 4711}, pillar)
    headers, (line,) = slot_status.as_text([row])
    assert dict(zip(headers, line, strict=True)) == {
        "slot": "slot-1", "model": "a:1", "digest": "d" * 12, "aliases": "llama-family", "instance": "node1", "node": 1,
        "state": "loaded", "local": "99%", "context": 8192, "GiB": "3.0", "tokens/s": 12.3,
        "since": "2026-05-01 10:00:00 UTC",
    }  # fmt: skip
    cold = slot_status.row(one) | slot_status.facts(one, None, None, {}, pillar)
    assert "NOT LOADED" in slot_status.as_text([cold])[1][0]


def test_since_when_a_process_runs(tmp_path):
    import os
    import time

    assert slot_status.since(os.getpid())[:10] in (time.strftime("%Y-%m-%d", time.gmtime()), "")
    assert slot_status.since(1, tmp_path) is None
