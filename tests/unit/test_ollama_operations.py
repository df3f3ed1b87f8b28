"""Everyday operations, natively and in Docker: the same words do the same, and nothing is lost unconfirmed."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest
from salt.exceptions import CommandExecutionError

from _modules import ollama as client_module
from _modules import ollama_operations as module
from _states import ollama as state
from aiplatform import instances, ollama_places, port_holders, settings
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
        "ollama_container.missing": Mock(return_value=["m:1", "m:2"]),
        "ollama_container.pull": Mock(),
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


def test_a_profile_that_starts_pulls_what_it_has_not_got_once_it_answers(mode, host):
    calls = Mock()
    for name in ("platform_container.wait_well", "ollama_container.pull"):
        calls.attach_mock(host[name], name.partition(".")[2])
    assert module.start()
    pulls = [call.pull("local", "m:1"), call.pull("local", "m:2")]
    # The models of native instances share one store, and are the state's.
    assert calls.mock_calls == ([] if mode == "native" else [call.wait_well("ollama", 120), *pulls])


def test_a_model_that_cannot_be_pulled_fails_the_start(mode, host):
    host["ollama_container.pull"].side_effect = PlatformError("no way")
    if mode == "container":
        with pytest.raises(PlatformError, match="no way"):
            module.start()
        host["platform_container.start"].assert_called_once_with("ollama")


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
    host["ollama_container.pull"].assert_not_called()


def test_what_was_stopped_for_a_wipe_is_started_though_it_fails(mode, host, store, monkeypatch):
    monkeypatch.setattr(module.shutil, "rmtree", Mock(side_effect=OSError("disk")))
    (store / "blobs/a-folder").mkdir()
    with pytest.raises(OSError, match="disk"):
        module.wipe(confirm={"native": str(store), "container": "ollama_data"}[mode])
    started = {"native": "service.start", "container": "platform_container.start"}[mode]
    assert host[started].call_count == (2 if mode == "native" else 1)


@pytest.mark.parametrize("mode", ["native"], indirect=True)
def test_nothing_is_deleted_under_a_unit_that_does_not_stop(mode, host, store):
    host["service.stop"].side_effect = lambda unit: unit != "ollama-node0.service"
    with pytest.raises(PlatformError, match=r"does not stop; where: ollama-node0\.service"):
        module.wipe(confirm=str(store))
    assert module.disk_use()["models"] == ["10.0.0.1:5000/team/b:2", "a:1"]
    assert (store / "blobs/sha256-x").exists()
    assert {call.args[0] for call in host["service.start"].mock_calls} == {"ollama.service", "ollama-node0.service"}


@pytest.mark.parametrize("mode", ["native"], indirect=True)
def test_one_that_does_not_start_again_keeps_no_other_from_it(mode, host, store):
    started = []

    def start(unit):
        if unit == "ollama.service":
            raise CommandExecutionError("it is masked")
        started.append(unit)
        return True

    host["service.start"].side_effect = start
    with pytest.raises(PlatformError, match=r"does not start again; where: node1; actual: it is masked"):
        module.wipe(confirm=str(store))
    assert started == ["ollama-node0.service"]


@pytest.mark.parametrize("mode", ["container"], indirect=True)
def test_the_volume_is_looked_at_and_wiped_without_its_container(mode, host, store):
    host["platform_container.inspect"].return_value = None
    assert module.store() == str(store)
    assert module.wipe(confirm="ollama_data")["deleted"] == ["10.0.0.1:5000/team/b:2", "a:1"]
    assert module.disk_use()["models"] == []
    host["platform_container.stop"].assert_not_called()
    host["platform_container.start"].assert_not_called()


def test_logs_come_from_where_they_are(mode, host):
    assert module.logs(lines=5)
    if mode == "native":
        assert "--unit=ollama.service" in host["cmd.run_stdout"].call_args.args[0]
    else:
        host["platform_container.logs"].assert_called_once_with("ollama", 5)


def test_one_prompt_is_answered_with_text(mode, host, httpserver, monkeypatch, tmp_path):
    lines = '{"response": "Good "}\n{"response": "day"}\n{"done": true, "response": ""}\n'
    httpserver.expect_request("/api/generate").respond_with_data(lines)
    place = ollama_places.place(pillar(mode))
    monkeypatch.setattr(module, "_place", lambda name: Mock(url=httpserver.url_for("").rstrip("/"), spec=place))
    counted = tmp_path / "ollama.prom"
    monkeypatch.setitem(module.__pillar__["ollama"], "metrics_file", str(counted))
    assert module.run("m:1", "Hello") == "Good day"
    assert 'outcome="ok"} 1.0' in counted.read_text()
    module.run("m:1", "Hello", num_predict=8, temperature=0)
    asked = [request.get_json()["options"] for request, _ in httpserver.log]
    assert asked == [{"num_predict": 256}, {"num_predict": 8, "temperature": 0}]


def test_what_is_asked_of_the_server_goes_to_the_one_of_the_mode(mode, host, httpserver, monkeypatch):
    """Pull, list, show, delete and one prompt; what is done by systemd or Docker instead, see above."""
    name, told = {"native": "node1", "container": "local"}[mode], pillar(mode)
    rows = told["ollama"]["instances"] if mode == "native" else told["ollama"]["profiles"]
    rows[name]["port"] = httpserver.port
    monkeypatch.setattr(module, "__pillar__", told, raising=False)
    for name_of, value in (("__pillar__", told), ("__opts__", {"file_client": "local"}), ("__salt__", host)):
        monkeypatch.setattr(client_module, name_of, value, raising=False)
    httpserver.expect_request("/api/pull").respond_with_data('{"status": "success"}\n')
    httpserver.expect_request("/api/tags").respond_with_json({"models": [{"name": "m:1"}]})
    httpserver.expect_request("/api/show").respond_with_json({"details": {"family": "f"}})
    httpserver.expect_request("/api/delete").respond_with_data("")
    httpserver.expect_request("/api/generate").respond_with_data('{"response": "Good day", "done": true}\n')
    assert client_module.pull(name, "m:1") == {"status": "success"}
    assert [row["name"] for row in client_module.list_models(name)] == ["m:1"]
    assert client_module.show(name, "m:1")["details"]["family"] == "f"
    assert client_module.delete(name, "m:1") is True
    assert module.run("m:1", "Hello", name) == "Good day"


@pytest.mark.parametrize("mode", ["container"], indirect=True)
def test_a_container_that_is_not_there_is_said_so(mode, host):
    host["platform_container.inspect"].return_value = None
    with pytest.raises(PlatformError, match=r"no container ollama.*state\.apply ollama"):
        module.stop()


def listener(process, unit):
    return port_holders.Holder("127.0.0.1", 11434, 9, process, unit)


@pytest.mark.parametrize("mode", ["native"], indirect=True)
@pytest.mark.parametrize(
    ("found", "publishers", "words"),
    [
        ([], [], []),
        ([listener("ollama", "ollama.service")], [], []),
        # Another instance leaves it in the same run, whether pillar still has that one or not.
        ([listener("ollama", "ollama-node0.service")], [], []),
        ([listener("ollama", "ollama-gone.service")], [], []),
        ([listener("docker-proxy", "docker.service")], ["ollama"], []),
        ([listener("docker-proxy", "docker.service")], ["web"], ["container web"]),
        ([listener("ollama", "other.service")], [], ["ollama (pid 9) of other.service on 127.0.0.1:11434"]),
        ([listener("ollama", "")], [], ["ollama (pid 9) on 127.0.0.1:11434"]),
    ],
)
def test_only_the_hosts_own_ollama_may_have_a_native_port(mode, host, monkeypatch, tmp_path, found, publishers, words):
    (tmp_path / "ollama-gone.service").write_text(f"{instances.MARK} Managed by Salt.\n")
    monkeypatch.setattr(instances, "UNITS", tmp_path)
    monkeypatch.setattr(port_holders, "holders", lambda port, address: found if port == 11434 else [])
    host["platform_container.answers"] = lambda: True
    host["platform_container.publishers"] = lambda port, address: publishers
    host["platform_container.labelled"] = lambda label: {"ollama": "local"}
    assert module.port_holders_of("node1") == words
    host["platform_container.answers"] = lambda: False
    del host["platform_container.publishers"], host["platform_container.labelled"]
    assert all("container" not in word for word in module.port_holders_of("node1"))


@pytest.mark.parametrize("mode", ["native"], indirect=True)
@pytest.mark.parametrize("test", [True, False])
def test_a_native_port_that_is_taken_fails_the_state_in_a_dry_run_too(mode, monkeypatch, test):
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    functions = {"ollama.port_holders_of": lambda name: ["container web"] if name == "node1" else []}
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    refused = state.port_is_free("node1")
    assert refused["result"] is False
    assert "nothing was changed; where: ollama.instances.node1.port" in refused["comment"]
    assert "held by container web" in refused["comment"]
    assert state.port_is_free("node0")["result"] is True
