"""Everyday operations, natively and in Docker: the same words do the same, and nothing is lost unconfirmed."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from _modules import ollama_operations as module
from aiplatform import ollama_places, settings
from aiplatform.errors import NotFoundError, PlatformError
from tests.conftest import CHECKOUT

MODES = ("native", "container")


def pillar(mode):
    return settings.effective({"ollama": {"mode": mode, "run": ["local", "service"]}}, CHECKOUT / "salt")


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def store(tmp_path):
    """A store with two models, in the folder of the volume as in that of the native instances."""
    for name in ("registry.ollama.ai/library/a/1", "10.0.0.1:5000/team/b/2"):
        path = tmp_path / "models/manifests" / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    (tmp_path / "models/blobs").mkdir()
    (tmp_path / "models/blobs/sha256-x").write_text("weights" * 1000)
    return tmp_path / "models"


@pytest.fixture
def host(store):
    """Salt's functions; what they were called with is kept."""
    names = ("start", "stop", "remove", "wait_well", "logs")
    functions = {f"platform_container.{name}": Mock(return_value=True) for name in names}
    functions |= {f"service.{name}": Mock(return_value=True) for name in ("start", "stop", "status")}
    return functions | {
        "platform_container.inspect": Mock(return_value={}),
        "platform_volume.folder": lambda volume: str(store.parent),
        "ollama.models_dir": lambda: str(store),
        "ollama.retire": Mock(return_value=True),
        "cmd.run_stdout": Mock(return_value="a line"),
    }


@pytest.fixture
def configure_loader_modules(mode, host):
    return {module: {"__pillar__": pillar(mode), "__salt__": host}}


@pytest.fixture(autouse=True)
def _answers(monkeypatch):
    monkeypatch.setattr(module.api.Client, "health", lambda self: True)


def test_the_first_one_is_meant_where_none_is_named(mode):
    assert ollama_places.place(pillar(mode)).name == {"native": "node1", "container": "local"}[mode]


def test_the_env_file_names_it_for_containers_and_for_the_host(mode):
    lines = module.env_text().splitlines()
    inner = {"native": "http://host.docker.internal:11434", "container": "http://ollama:11434"}[mode]
    assert lines[1:] == [f"OLLAMA_BASE_URL={inner}", "OLLAMA_HOST_BASE_URL=http://127.0.0.1:11434"]


def test_a_name_that_is_not_there_is_refused_with_the_nearest(mode):
    with pytest.raises(NotFoundError, match="did you mean"):
        ollama_places.place(pillar(mode), {"native": "node2", "container": "lokal"}[mode])


def test_stop_start_and_remove(mode, host):
    assert module.stop()
    assert module.start()
    assert module.remove()
    if mode == "native":
        host["service.stop"].assert_called_once_with("ollama.service")
        host["service.start"].assert_called_once_with("ollama.service")
        host["ollama.retire"].assert_called_once_with("ollama.service")
    else:
        host["platform_container.stop"].assert_called_once_with("ollama")
        host["platform_container.start"].assert_called_once_with("ollama")
        host["platform_container.remove"].assert_called_once_with("ollama")


def test_stopping_a_model_leaves_ollama_running(mode, host, monkeypatch):
    unloaded = []
    monkeypatch.setattr(module.api.Client, "unload", lambda self, model: unloaded.append(model))
    assert module.stop(model="m:1")
    assert unloaded == ["m:1"]
    host["service.stop"].assert_not_called()
    host["platform_container.stop"].assert_not_called()


def test_disk_use_names_the_models_as_people_do(mode):
    used = module.disk_use()
    assert used["models"] == ["10.0.0.1:5000/team/b:2", "a:1"]
    assert used["bytes"] >= 7000
    assert used["free"] > 0


@pytest.mark.parametrize("confirm", ["", "yes", "ollama"])
def test_nothing_is_wiped_without_its_name(mode, host, store, confirm):
    with pytest.raises(PlatformError, match=r"2 models.*nothing was changed.*confirm="):
        module.wipe(confirm=confirm)
    assert (store / "blobs/sha256-x").exists()
    host["service.stop"].assert_not_called()
    host["platform_container.stop"].assert_not_called()


def test_a_confirmed_wipe_empties_the_store_between_stop_and_start(mode, host, store):
    told = module.wipe(confirm={"native": str(store), "container": "ollama_data"}[mode])
    assert told["deleted"] == ["10.0.0.1:5000/team/b:2", "a:1"]
    assert module.disk_use()["models"] == []
    assert store.is_dir()
    if mode == "native":
        # Both instances share the store.
        assert {call.args[0] for call in host["service.stop"].mock_calls} == {"ollama.service", "ollama-node0.service"}
        assert host["service.start"].call_count == 2
    else:
        host["platform_container.stop"].assert_called_once_with("ollama")
        host["platform_container.start"].assert_called_once_with("ollama")


def test_what_was_stopped_for_a_wipe_is_started_though_it_fails(mode, host, store, monkeypatch):
    monkeypatch.setattr(module.shutil, "rmtree", Mock(side_effect=OSError("disk")))
    (store / "blobs/a-folder").mkdir()
    with pytest.raises(OSError, match="disk"):
        module.wipe(confirm={"native": str(store), "container": "ollama_data"}[mode])
    started = {"native": "service.start", "container": "platform_container.start"}[mode]
    assert host[started].call_count == (2 if mode == "native" else 1)


def test_logs_come_from_where_they_are(mode, host):
    assert module.logs(lines=5)
    if mode == "native":
        assert "--unit=ollama.service" in host["cmd.run_stdout"].call_args.args[0]
    else:
        host["platform_container.logs"].assert_called_once_with("ollama", 5)


def test_one_prompt_is_answered_with_text(mode, host, httpserver, monkeypatch):
    lines = '{"response": "Good "}\n{"response": "day"}\n{"done": true, "response": ""}\n'
    httpserver.expect_request("/api/generate").respond_with_data(lines)
    place = ollama_places.place(pillar(mode))
    monkeypatch.setattr(module, "_place", lambda name: Mock(url=httpserver.url_for("").rstrip("/"), spec=place))
    assert module.run("m:1", "Hello") == "Good day"


@pytest.mark.parametrize("mode", ["container"], indirect=True)
def test_a_container_that_is_not_there_is_said_so(mode, host):
    host["platform_container.inspect"].return_value = None
    with pytest.raises(PlatformError, match=r"no container ollama.*state\.apply ollama"):
        module.stop()
