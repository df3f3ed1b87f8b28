"""The states of slots beside a warm-up unit: what a start of the instance brings is no change of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from _modules import model_slots as module
from _states import benchmark as benchmark_state
from _states import model_slots as state
from aiplatform import manifests
from aiplatform.errors import PlatformError
from aiplatform.ollama import InstanceDown

UNIT, WARMUP = "ollama.service", "ollama-warmup.service"
WANTED = {"url": "http://127.0.0.1:11434", "models": []}
COLD = {"slot-1 loaded": {"old": None, "new": "a:1"}}


class Host:
    """A host's units; the warm-up is at work as often as ``busy`` says, then as ``after`` says."""

    def __init__(self) -> None:
        self.there = self.enabled = self.up = True
        self.busy, self.after = 0, "active"
        self.calls: list[str] = []

    def show(self, unit):
        assert unit == WARMUP
        self.busy -= 1
        return {"ActiveState": "activating" if self.busy >= 0 else self.after}

    def status(self, unit):
        assert unit == UNIT
        return self.up

    def differences(self, instance):
        self.calls.append(f"compared {instance}")
        return COLD if self.busy >= 0 or not self.up else {}


@pytest.fixture
def host(monkeypatch):
    found = Host()
    functions = {
        "ollama.warmup_unit": lambda instance: WARMUP,
        "service.available": lambda unit: found.there,
        "service.enabled": lambda unit: found.enabled,
        "service.enable": lambda unit: found.calls.append("enabled"),
        "service.status": found.status,
        "service.show": found.show,
        "model_slots.warm_up": lambda instance: found.calls.append("run"),
        "model_slots.warmup_seconds": lambda instance: 60,
        "model_slots.warmup_settings": lambda instance: WANTED,
        "model_slots.differences": found.differences,
    }
    pillar = {"selection": {"slot1_general": "a:1"}, "ollama": {"instances": {"node1": {"unit": UNIT}}}}
    for name, value in (("salt", functions), ("pillar", pillar), ("opts", {"test": False})):
        monkeypatch.setattr(state, f"__{name}__", value, raising=False)
    return found


@pytest.fixture
def dry(monkeypatch):
    def switch(test=True):
        monkeypatch.setattr(state, "__opts__", {"test": test})

    return switch


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "warmup-node1.json"
    path.write_text(json.dumps(WANTED))
    return str(path)


def served(settings):
    return state.served("node1", warmup=settings)


def test_a_warmup_at_work_is_awaited(host, settings):
    host.busy = 1
    ret = served(settings)
    assert (ret["result"], ret["changes"]) == (True, {})


@pytest.mark.parametrize("content", ["", '{"url": "http://127.0.0.1:1"}', None])
def test_a_warmup_that_loads_something_else_is_not_awaited(host, dry, settings, content):
    dry()
    host.busy = 10**6
    Path(settings).unlink() if content is None else Path(settings).write_text(content)
    assert served(settings)["changes"] == COLD


def test_a_stopped_instance_comes_back_warm(host, dry, settings):
    host.up = False
    dry()
    assert served(settings)["changes"] == {}
    assert state.warmed(WARMUP, "node1")["changes"] == {}
    host.enabled = False
    assert served(settings)["changes"] == COLD
    assert state.warmed(WARMUP, "node1")["changes"] == {WARMUP: {"old": "disabled", "new": "enabled and run"}}


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("fault", ["there", "enabled", "after"])
def test_a_cold_unit_is_enabled_and_run(host, dry, fault, test):
    dry(test)
    setattr(host, fault, "failed" if fault == "after" else False)
    ret = state.warmed(WARMUP, "node1")
    assert (ret["result"], list(ret["changes"])) == (None if test else True, [WARMUP])
    assert host.calls == ([] if test else ["enabled", "run"])


@pytest.mark.parametrize("busy", [0, 10**6])
def test_a_unit_that_is_warm_or_at_work_is_left_alone(host, busy):
    host.busy = busy
    assert state.warmed(WARMUP, "node1")["changes"] == {}
    assert host.calls == []


@pytest.mark.parametrize("test", [True, False])
def test_it_runs_again_where_its_files_change(host, dry, test):
    dry(test)
    ret = state.mod_watch(WARMUP, "node1", sfun="warmed", __reqs__={})
    assert (ret["result"], list(ret["changes"])) == (None if test else True, [WARMUP])
    assert host.calls == ([] if test else ["run"])


def test_a_warmup_that_fails_fails_the_state(host, monkeypatch):
    def fail(instance):
        raise PlatformError("The warm-up failed")

    host.after = "failed"
    monkeypatch.setitem(state.__salt__, "model_slots.warm_up", fail)
    assert (state.warmed(WARMUP, "node1")["result"], host.calls) == (False, ["enabled"])


# --- what a dry run knows of a store that nothing serves


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("llama3.1:8b", "registry.ollama.ai/library/llama3.1/8b"),
        ("somebody/model:1", "registry.ollama.ai/somebody/model/1"),
        ("10.0.0.1:5000/library/gemma:q4", "10.0.0.1:5000/library/gemma/q4"),
    ],
)
def test_a_manifest_is_where_ollama_writes_it(model, path):
    assert manifests.path(Path("/store"), model) == Path("/store/manifests") / path


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (
            "registry.ollama.ai/library/qwen2.5-coder/32b-instruct-q4_K_M",
            ["qwen2.5-coder:32b-instruct-q4_K_M", "Qwen2.5-Coder:32b-instruct-q4_k_m"],
        ),
        ("10.0.0.1:5000/Team/Phi/Q8_0", ["10.0.0.1:5000/team/phi:Q8_0"]),
        ("registry.ollama.ai/library/gemma/q4", ["Gemma:Q4"]),
    ],
)
def test_a_manifest_is_found_however_its_name_is_spelled(tmp_path, file, names):
    """Ollama keeps the capitals that a model was pulled with, and takes every spelling of it for the same."""
    manifest = tmp_path / "manifests" / file
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert [manifests.path(tmp_path, name) for name in names] == [manifest] * len(names)


def test_a_manifest_is_found_beside_another_tag_in_another_spelling(tmp_path):
    library = tmp_path / "manifests/registry.ollama.ai/library"
    for file in ("Qwen/7b", "qwen/32b-q4_K_M"):
        (library / file).parent.mkdir(parents=True)
        (library / file).write_text("{}")
    assert manifests.path(tmp_path, "qwen:32b-q4_K_M") == library / "qwen/32b-q4_K_M"
    assert manifests.path(tmp_path, "qwen:7b") == library / "Qwen/7b"
    assert not manifests.path(tmp_path, "qwen:14b").exists()


def test_a_model_of_a_stopped_instance_is_not_missing(monkeypatch, tmp_path):
    def down():
        raise InstanceDown("nothing answers")

    monkeypatch.setattr(module, "_store", down)
    pillar = {"ollama": {"models_dir": str(tmp_path)}}
    monkeypatch.setattr(module, "__pillar__", pillar, raising=False)
    manifest = tmp_path / "manifests/registry.ollama.ai/library/a/1-q4_K_M"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert module.missing(["a:1-q4_K_M", "b:1"]) == ["b:1"]


def test_a_measured_model_that_is_pulled_again_is_not_measured_again(monkeypatch):
    plan = {"measure": {}, "recommended": {}, "memory": []}
    functions = {"benchmark.to_be_pulled": lambda: ["A:1", "b:1", "c:1"], "benchmark.plan": lambda: plan}
    pillar = {"selection": {"all_metrics": {"a:1": {}}, "excluded": {"c:1": "same weights as a:1"}}}
    for name, value in (("salt", functions), ("pillar", pillar), ("opts", {"test": True})):
        monkeypatch.setattr(benchmark_state, f"__{name}__", value, raising=False)
    assert benchmark_state.measured("x")["changes"] == {"b:1": "to be measured once it is pulled"}


@pytest.mark.parametrize(("result", "again"), [(None, True), (True, False)])
def test_a_restart_with_another_warm_up_brings_the_models_back_later(monkeypatch, tmp_path, result, again):
    """The service's own state, earlier in the same dry run, says whether it would be restarted."""
    functions = {
        "model_slots.warmup_settings": lambda _: WANTED | {"models": ["slot-1"]},
        "model_slots.differences": lambda _: {},
    }
    pillar = {"selection": {"slot1_general": "a:1"}, "ollama": {"instances": {"node1": {"unit": "ollama.service"}}}}
    rows = {"service_|-ollama-node1_|-ollama.service_|-running": {"result": result}}
    given = {"salt": functions, "pillar": pillar, "opts": {"test": True}, "running": rows}
    for name, value in given.items():
        monkeypatch.setattr(state, f"__{name}__", value, raising=False)
    (tmp_path / "warmup.json").write_text("{}")
    assert bool(state.served("node1", str(tmp_path / "warmup.json"))["changes"]) is again


def test_a_warm_up_that_only_waits_otherwise_is_relied_on(host, monkeypatch, tmp_path):
    (tmp_path / "warmup.json").write_text(json.dumps(WANTED | {"wait_seconds": 1}))
    monkeypatch.setattr(state, "__running__", {f"service_|-x_|-{UNIT}_|-running": {"result": None}}, raising=False)
    monkeypatch.setitem(state.__opts__, "test", True)
    assert state.served("node1", str(tmp_path / "warmup.json"))["changes"] == {}


@pytest.mark.parametrize(
    ("key", "changes", "again"),
    [
        ("service_|-ollama-node1_|-ollama.service_|-running", {}, True),
        ("ollama_|-ollama-current_|-1.1.0_|-in_use", {"current": {}, UNIT: {}}, True),
        ("ollama_|-ollama-current_|-1.1.0_|-in_use", {"current": {}, "ollama-node0.service": {}}, False),
        ("file_|-models-warmup-program_|-/usr/local/bin/ollama-warmup_|-managed", {"diff": "x"}, False),
    ],
)
def test_a_dry_run_knows_of_the_restart_that_another_state_predicts(host, monkeypatch, tmp_path, key, changes, again):
    monkeypatch.setitem(state.__opts__, "test", True)
    monkeypatch.setattr(state, "__running__", {key: {"result": None, "changes": changes}}, raising=False)
    told = state.served("node1", warmup=str(tmp_path / "another.json"))["changes"]
    assert ("node1" in told) is again
