"""The doctor: what each measurement means, and that every entry has something measured and something to type."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
from werkzeug import Response

from _modules import ollama_doctor as module
from aiplatform import cgroups, doctor, examination, settings
from aiplatform.doctor import Answer
from aiplatform.ollama_places import Place
from tests.conftest import CHECKOUT

NATIVE = Place(
    "node1", "http://127.0.0.1:11434", "http://host.docker.internal:11434", 11434, "0.0.0.0", unit="ollama.service"
)
DOCKER = Place(
    "local", "http://127.0.0.1:11434", "http://ollama:11434", 11434, "127.0.0.1", container="ollama", volume="v"
)
GIB = 2**30
QUICK = Answer("m:1", load=0.1, first=0.2, tokens=16, rate=30.0)
CRAWLING = Answer("m:1", load=9.0, first=60.0, tokens=16, rate=0.1)


def test_refused_from_the_host_names_state_and_who_listens_instead():
    found = doctor.from_host(
        DOCKER, "", "Nothing listens", "exited (health: none)", ["nginx (pid 7) on 127.0.0.1:11434"]
    )
    assert found.ok is False
    for word in ("container ollama is exited", "nginx (pid 7)"):
        assert word in found.actual
    assert "docker logs --tail 100 ollama" in found.hint
    assert "journalctl --unit ollama.service" in doctor.from_host(NATIVE, "", "x", "failed", []).hint
    assert doctor.from_host(NATIVE, "0.17.4", "", "active", []).ok


def test_refused_from_a_container_says_which_name_to_use():
    found = doctor.from_container(DOCKER, False, "it is refused")
    assert found.ok is False
    assert "OLLAMA_BASE_URL=http://ollama:11434" in found.hint
    assert doctor.from_container(NATIVE, None, "there is no Docker").ok


@pytest.mark.parametrize(
    ("seconds", "rate", "free", "ok"),
    [
        (0.1, 20e6, 50 * 10**9, True),
        (0.1, None, 50 * 10**9, True),
        (0.1, 20_000, 50 * 10**9, False),
        (0.1, 20e6, 10**9, False),
        (None, None, 50 * 10**9, False),
    ],
)
def test_a_download_needs_a_registry_a_line_and_a_disk(seconds, rate, free, ok):
    found = doctor.download("the registry of m:1", seconds, rate, free, 0, "no answer")
    assert found.ok is ok
    assert "tinyllama" in found.hint


@pytest.mark.parametrize(
    ("free", "killed", "needed", "ok"),
    [(8 * GIB, 0, 4 * GIB, True), (3 * GIB, 0, 4 * GIB, False), (8 * GIB, 1, 0, False), (3 * GIB, 0, 0, True)],
)
def test_memory_is_what_the_largest_model_needs(free, killed, needed, ok):
    found = doctor.memory(DOCKER, free, 8 * GIB, killed, needed)
    assert found.ok is ok
    assert "ollama.profiles.local.memory_mib" in found.hint


@pytest.mark.parametrize(
    ("wanted", "drivers", "given", "loaded", "ok"),
    [
        (False, [], False, [], True),
        ("auto", [], False, [], True),
        (True, [], False, [], False),
        (True, ["nvidia"], True, [{"size_vram": 5}], True),
        ("auto", ["nvidia"], True, [{"size_vram": 0}], False),
        (False, ["nvidia"], False, [{"size_vram": 0}], True),
        (True, ["nvidia"], False, [], False),
        ("auto", ["nvidia"], False, [], False),  # made before the driver
    ],
)
def test_a_gpu_that_is_wanted_has_to_be_used(wanted, drivers, given, loaded, ok):
    assert doctor.gpu(wanted, drivers, given, loaded).ok is ok


def test_a_model_that_does_not_load_says_why():
    found = doctor.loads("m:1", [], None, "model 'm:1' not found")
    assert found.ok is False
    assert "not found" in found.actual
    assert "salt-call ollama.pull <instance> m:1" in found.hint
    assert doctor.loads("", ["m:1"], QUICK, "").actual.startswith("m:1 loaded in 0.1 s")


def test_slow_and_dead_are_two_things():
    assert doctor.slow(QUICK, 5, 0.1).ok
    assert not doctor.slow(CRAWLING, 5, 0.1).ok
    assert not doctor.slow(None, 5, 0.1).ok
    assert doctor.dead(QUICK, strict=False, cpus=4, throttled=0.0).ok
    assert not doctor.dead(CRAWLING, strict=False, cpus=4, throttled=0.0).ok
    assert not doctor.dead(QUICK, strict=True, cpus=4, throttled=0.0).ok
    assert not doctor.dead(QUICK, strict=False, cpus=4, throttled=0.9).ok


def test_duplicates_are_named_and_the_platforms_own_names_are_none():
    digests = {"a:1": "x", "b:1": "x", "c:1": "y", "slot-1:latest": "y"}
    found = doctor.duplicates(digests, {"slot-1:latest"})
    assert found.ok is False
    assert found.actual == "a:1 = b:1"
    assert "ollama.delete <instance> b:1" in found.hint
    assert doctor.duplicates({"a:1": "x", "alias": "x"}, {"alias"}).ok


@pytest.mark.parametrize(
    ("used", "goes"),
    [((), "e:latest"), (("e:latest",), "e:v1.5"), (("e:v1.5",), "e:latest"), (("e:latest", "e:v1.5"), None)],
)
def test_of_duplicates_one_goes_that_nobody_uses_and_an_explicit_tag_stays(used, goes):
    found = doctor.duplicates({"e:latest": "x", "e:v1.5": "x"}, (), used)
    assert found.ok is False
    assert found.hint.count("ollama.delete") == bool(goes)
    assert goes is None or f"ollama.delete <instance> {goes};" in found.hint


MANIFEST = "a" * 64


@pytest.fixture
def server(httpserver):
    """An Ollama with one model, and its registry at the same address."""
    httpserver.expect_request("/api/version").respond_with_json({"version": "0.17.4"})
    httpserver.expect_request("/api/tags").respond_with_json({"models": [{"name": "m:1", "size": 5}]})
    httpserver.expect_request("/api/ps").respond_with_json({"models": []})
    httpserver.expect_request("/api/show").respond_with_json({"modelfile": f"FROM /blobs/sha256-{MANIFEST}\n"})
    last = {"done": True, "response": "", "load_duration": 10**9, "eval_count": 16, "eval_duration": 10**9}
    lines = [{"response": "Hello"}, last]
    httpserver.expect_request("/api/generate").respond_with_data("".join(json.dumps(line) + "\n" for line in lines))
    return httpserver


@pytest.fixture
def configure_loader_modules(httpserver, tmp_path):
    merged = settings.effective({}, CHECKOUT / "salt")
    name = f"127.0.0.1:{httpserver.port}"
    merged["ollama"] |= {
        "api_host": "127.0.0.1",
        "instances": {"main": {"port": httpserver.port, "unit": "ollama.service", "numa_node": None}},
        "models": [f"{name}/library/m:1"],
    }
    merged["models"]["insecure_registries"] = [name]
    functions = {
        "service.show": lambda unit: {"ActiveState": "active", "MainPID": "0"},
        "platform_container.answers": lambda: False,
        "ollama.store": lambda instance: str(tmp_path),
        "gpu.found": list,
        "gpu.in_containers": list,
    }
    return {module: {"__pillar__": merged, "__salt__": functions, "__context__": {}}}


@pytest.mark.usefixtures("configure_loader_modules")
class TestExamination:
    def test_every_entry_is_measured_and_has_its_command(self, server, monkeypatch):
        layers = {
            "layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{MANIFEST}", "size": 9}]
        }
        server.expect_request("/v2/library/m/manifests/1").respond_with_json(layers)
        server.expect_request(f"/v2/library/m/blobs/sha256:{MANIFEST}").respond_with_data(b"w" * (1 << 20))
        monkeypatch.setattr(examination.shutil, "disk_usage", lambda path: Mock(free=90 * 10**9))
        monkeypatch.setattr(examination.footprint, "available", lambda: 90 * 10**9)
        told = module.doctor(out="json")
        assert [row["check"] for row in told["entries"]] == [
            "refused from the host",
            "refused from a container",
            "slow or failed download",
            "out of memory",
            "GPU not detected",
            "a model does not load",
            "slow generation",
            "throughput near zero",
            "duplicates",
        ]
        assert all(row["actual"] and row["hint"] for row in told["entries"])
        assert {row["check"]: row["actual"] for row in told["entries"] if not row["ok"]} == {}
        assert "16.0 tokens/s" in told["entries"][6]["actual"]
        assert "MB/s" in told["entries"][2]["actual"]
        assert "<instance>" not in str(told)
        assert module.__context__["retcode"] == 0

    def test_no_registry_is_asked_for_a_name_that_the_platform_made(self, server):
        """Staged ones too, which a rotation that failed half-way leaves behind."""
        name = f"127.0.0.1:{server.port}/library/m:1"
        names = ["slot-5:next", "coder-32k:latest", name]
        listed = [{"name": name, "size": size} for size, name in enumerate(names)]
        server.clear_all_handlers()
        server.expect_request("/api/tags").respond_with_json({"models": listed})
        module.__pillar__["ollama"]["models"] = []
        told = next(row for row in module.doctor(out="json")["entries"] if row["check"] == "slow or failed download")
        assert name in told["expected"] + told["actual"]
        assert "/v2/library/m/manifests/1" in [request.path for request, _ in server.log]

    def test_weights_that_are_loaded_by_another_name_need_no_memory(self, server, monkeypatch):
        """A slot's alias is loaded, and the store lists the model that it was made of, and other candidates."""
        sizes = {"slot-1:latest": 5 << 40, "m:1": 5 << 40, "n:1": 7 << 40}
        listed = [{"name": name, "size": size} for name, size in sizes.items()]
        server.clear_all_handlers()
        server.expect_request("/api/tags").respond_with_json({"models": listed})
        server.expect_request("/api/ps").respond_with_json({"models": [{"name": "llama-family:latest"}]})

        def show(request):
            digest = ("b" if json.loads(request.get_data())["model"] == "n:1" else "a") * 64
            return Response(json.dumps({"modelfile": f"FROM /blobs/sha256-{digest}\n"}))

        server.expect_request("/api/show").respond_with_handler(show)
        monkeypatch.setattr(examination.footprint, "available", lambda: 6 << 40)

        def memory():
            return next(row for row in module.doctor(out="json")["entries"] if row["check"] == "out of memory")

        assert "7168.0 GiB free, nothing" in memory()["expected"]
        listed.append({"name": "llama-family:latest", "size": 5 << 40})
        server.expect_request("/api/tags").respond_with_json({"models": listed})
        monkeypatch.setitem(module.__pillar__, "slots", {1: {"instance": "main"}})
        assert memory()["ok"]

    @pytest.mark.parametrize(
        ("drivers", "private", "ok"),
        [([], "yes", True), (["nvidia"], "yes", False), (["nvidia"], "no", True), (["amd"], "yes", False)],
    )
    def test_a_unit_of_before_its_driver_is_a_finding(self, server, monkeypatch, drivers, private, ok):
        shown = {"ActiveState": "active", "MainPID": "0", "PrivateDevices": private}
        monkeypatch.setitem(module.__salt__, "service.show", lambda unit: shown)
        monkeypatch.setitem(module.__salt__, "gpu.found", lambda: drivers)
        row = module.doctor(out="json")["entries"][4]
        assert (row["check"], row["ok"]) == ("GPU not detected", ok)

    @pytest.mark.parametrize(
        ("drivers", "requests", "ok"), [(["nvidia"], None, False), (["nvidia"], [{}], True), (["amd"], None, True)]
    )
    def test_a_container_of_before_its_driver_is_a_finding(self, monkeypatch, drivers, requests, ok):
        """AMD's devices are none that Docker is asked for."""
        functions = {
            "gpu.in_containers": lambda: drivers,
            "ollama_container.profiles": lambda: {"local": {"gpu": "auto"}},
            "platform_container.inspect": lambda name: {"HostConfig": {"DeviceRequests": requests}},
        }
        made = examination.Examination(DOCKER, {}, functions, "", 1)
        monkeypatch.setattr(made, "loaded", [])
        assert made.gpu().ok is ok

    @pytest.mark.parametrize("let_in", [True, False])
    def test_natively_what_the_firewall_says_of_containers_counts(self, server, monkeypatch, let_in):
        """The host reaches its own address by loopback, which the firewall never closes."""
        network = {"IPAM": {"Config": [{"Gateway": "127.0.0.1", "Subnet": "172.20.0.0/16"}]}}
        asked = Mock(return_value=let_in)
        functions = {
            "platform_container.answers": lambda: True,
            "platform_container.network": lambda name: network,
            "platform_firewall.lets_containers_in": asked,
        }
        for name, function in functions.items():
            monkeypatch.setitem(module.__salt__, name, function)
        row = module.doctor(out="json")["entries"][1]
        asked.assert_called_once_with("ollama-main", "172.20.0.0/16")
        assert row["ok"] is let_in
        assert ("does not let" in row["actual"]) is not let_in
        for setting in ("services.ollama.reach", "ollama.api_host"):
            assert setting in row["hint"]

    def test_a_limit_of_the_unit_counts_though_the_host_has_more(self, server, monkeypatch):
        server.clear_all_handlers()
        server.expect_request("/api/tags").respond_with_json({"models": [{"name": "m:1", "size": 5 * GIB}]})
        monkeypatch.setitem(module.__salt__, "service.show", lambda unit: {"MainPID": "1"})
        monkeypatch.setattr(examination.cgroups, "counter", lambda pid, file, name: 0)
        monkeypatch.setattr(examination.cgroups, "limits", lambda pid: cgroups.Limits(memory=1200 << 20))
        monkeypatch.setattr(examination.cgroups, "memory_left", lambda pid: 1024 << 20)
        monkeypatch.setattr(examination.footprint, "available", lambda: 20 * GIB)
        told = module.doctor(out="json")
        row = next(row for row in told["entries"] if row["check"] == "out of memory")
        assert row["ok"] is False
        assert "1.0 GiB free, limit 1.2 GiB" in row["actual"]
        assert "ollama.memory_max_mib" in row["hint"]

    def test_where_nothing_answers_every_entry_still_does(self):
        text = module.doctor(patience=1)
        assert text.count("measured:") == 9
        assert "FINDING refused from the host" in text
        assert "systemctl status ollama.service" in text
        assert "FINDING duplicates" in text
        assert text.count("commands:") == 9
        duplicates = text[text.index("FINDING duplicates") :]
        assert "systemctl status ollama.service; journalctl --unit ollama.service --lines 100" in duplicates
        assert module.__context__["retcode"] == 1

    def test_an_empty_store_has_no_duplicates(self, server):
        server.clear_all_handlers()
        server.expect_request("/api/version").respond_with_json({"version": "1.0.0"})
        server.expect_request("/api/tags").respond_with_json({"models": []})
        server.expect_request("/api/ps").respond_with_json({"models": []})
        row = module.doctor(patience=1, out="json")["entries"][-1]
        assert (row["check"], row["ok"], row["actual"]) == ("duplicates", True, "0 models, 0 different weights")

    def test_a_model_that_is_named_and_not_there_is_a_finding(self, server):
        server.clear_all_handlers()
        server.expect_request("/api/generate").respond_with_json({"error": "model 'x:1' not found"}, status=404)
        told = module.doctor(model="x:1", out="json")
        loads = next(row for row in told["entries"] if row["check"] == "a model does not load")
        assert loads["ok"] is False
        assert "not found" in loads["actual"]
        assert "salt-call ollama.pull main x:1" in loads["hint"]

    def test_a_load_that_is_killed_counts_against_memory(self, server, monkeypatch):
        """The kernel counts what it killed after the load was tried, not before."""
        server.clear_all_handlers()
        kills = []

        def killed(request):
            kills.append(1)
            return Response('{"error": "llama runner process has terminated: signal: killed"}', status=500)

        server.expect_request("/api/tags").respond_with_json({"models": [{"name": "m:1", "size": 5}]})
        server.expect_request("/api/generate").respond_with_handler(killed)
        monkeypatch.setitem(module.__salt__, "service.show", lambda unit: {"MainPID": "1"})
        monkeypatch.setattr(examination.cgroups, "counter", lambda pid, file, name: len(kills))
        monkeypatch.setattr(examination.footprint, "available", lambda: 90 * 10**9)
        told = module.doctor(out="json")
        row = next(row for row in told["entries"] if row["check"] == "out of memory")
        assert row["ok"] is False
        assert "killed 2 times" in row["actual"]  # memory.events and memory.oom_control, once each
