"""One server alone: the few lines of its pillar, and what follows from them."""

from __future__ import annotations

import json
from unittest.mock import Mock

import jinja2
import pytest
import yaml

from _pillar import ai_platform
from _states import ollama_discovery as state
from aiplatform import discovery, firewall, gpu, instances, single
from tests.conftest import CHECKOUT

SHIPPED = CHECKOUT / "pillar/single.sls"


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile a pillar as a host without a master does."""
    options = {"pillar_roots": {"base": [str(tmp_path)]}, "__role": "minion"}
    monkeypatch.setattr(ai_platform, "__opts__", options, raising=False)
    monkeypatch.setattr(single, "own_address", lambda: "192.0.2.50")

    def compile_it(written, again=None):
        if again:
            options["pillar"] = written
        return ai_platform.ext_pillar("single", dict(again or written), formulas=str(CHECKOUT / "salt"))

    return compile_it


@pytest.fixture
def written():
    return yaml.safe_load(SHIPPED.read_text())


def test_the_shipped_pillar_is_ten_lines_and_right(compiled, written):
    lines = [line for line in SHIPPED.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) <= 10
    pillar = compiled(written)
    assert pillar.get("_errors") is None
    assert pillar["roles"] == ["ollama_server"]
    assert pillar["address"] == "192.0.2.50"
    assert pillar["ollama"]["instances"] == {
        "main": {"port": 11434, "numa_node": None, "cpus": "physical", "membind": False, "unit": "ollama.service"}
    }
    assert (pillar["slots"], pillar["aliases"]) == ({}, {})


def test_the_compiled_pillar_compiles_to_itself(compiled, written):
    """As a masterless state run does, in which the pillar's files come over what was compiled before."""
    once = compiled(written)
    assert compiled(once, once | written) | {"compiled": 0} == once | {"compiled": 0}


def test_the_top_file_gives_a_server_alone_its_own_pillar_and_nobody_elses():
    top = yaml.safe_load((CHECKOUT / "pillar/top.sls").read_text())["base"]
    assert top["single"] == ["single"]
    assert top["not single"] == [{"match": "compound"}, "platform", "slots"]
    config = yaml.safe_load((CHECKOUT / "etc/masterless/minion").read_text())
    assert config["id"] == "single"


def test_the_firewall_speaks_of_ollama_only(compiled, written):
    rules = firewall.rules(compiled(written), "single")
    assert {rule.split("dport ")[1].split()[0] for rule in rules if "dport" in rule} == {"11434"}
    assert "ip saddr { 192.0.2.0/24 } tcp dport 11434 accept" in rules
    assert rules[-1] == 'tcp dport 11434 drop comment "ollama-main"'


def test_nobody_else_is_let_in_where_pillar_names_nobody(compiled):
    rules = firewall.rules(compiled({"ollama": {"api_port": 11434}}), "single")
    assert not [rule for rule in rules if "saddr" in rule]
    assert 'tcp dport 11434 drop comment "ollama-main"' in rules


@pytest.mark.parametrize("again", [False, True])
def test_in_docker_the_sources_of_a_profile_let_in_and_not_the_reach_of_the_instances(compiled, written, again):
    """The profile has the port that the native instance would have had."""
    profile = {"address": "192.0.2.20", "sources": ["192.0.2.64/26"]}
    written["ollama"] |= {"mode": "container", "profiles": {"local": profile}}
    pillar = compiled(written)
    if again:
        pillar = compiled(pillar, pillar)
    inside = [rule for rule in firewall.forward_rules(pillar, "single") if "11434" in rule]
    assert [rule.split(" oifname")[0] for rule in inside] == ["ip saddr { 192.0.2.64/26 }"]
    assert [rule for rule in firewall.rules(pillar, "single") if "11434" in rule] == [
        "ip saddr { 192.0.2.64/26 } tcp dport 11434 accept",
        'tcp dport 11434 drop comment "ollama-local"',
    ]


@pytest.mark.parametrize("reach", ["192.0.2.1/24", "192.0.2", "lan", "192.0.2.0/33"])
def test_a_source_that_is_none_is_refused_with_its_key(compiled, reach):
    errors = compiled({"ollama": {"api_port": 1}, "services": {"ollama": {"reach": [reach]}}})["_errors"]
    assert "services.ollama.reach.0" in errors[0]


def test_concurrency_is_what_pillar_says(compiled):
    written = {"ollama": {"api_port": 11434, "num_parallel": 3, "max_loaded_models": 1, "keep_alive": 600}}
    environment = instances.environment(compiled(written), "main")
    assert environment["OLLAMA_NUM_PARALLEL"] == "3"
    assert environment["OLLAMA_MAX_LOADED_MODELS"] == "1"
    assert environment["OLLAMA_KEEP_ALIVE"] == "600"


def test_the_instance_may_be_told_its_cpus_and_no_other_may_be_named(compiled):
    pillar = compiled({"ollama": {"api_port": 9, "instances": {"main": {"cpus": [0]}}}})
    assert pillar["ollama"]["instances"]["main"]["cpus"] == [0]
    errors = compiled({"ollama": {"api_port": 9, "instances": {"node1": {"cpus": [0]}}}})["_errors"]
    assert "only main: ollama.api_port asks for one instance" in errors[0]


def test_a_misspelt_key_is_named_with_the_nearest(compiled):
    assert "did you mean api_port" in compiled({"ollama": {"api_prot": 11434}})["_errors"][0]


@pytest.mark.parametrize("wrong", [{"ollama": "native"}, {"platform": []}, {"ollama": {"api_port": "x"}}])
def test_what_is_misshapen_is_left_to_the_schema(compiled, wrong):
    assert compiled(wrong)["_errors"]


def test_slots_that_pillar_names_are_on_the_one_instance_and_their_aliases_stay(compiled):
    pillar = compiled({"ollama": {"api_port": 11434}, "slots": {1: {}, 3: {}}})
    assert {number: row["instance"] for number, row in pillar["slots"].items()} == {1: "main", 3: "main"}
    assert set(pillar["aliases"]) == {"llama-family", "coder-128k", "embedding"}
    assert pillar["aliases"]["embedding"]["instance"] == "main"
    assert compiled(pillar, pillar)["slots"] == pillar["slots"]


@pytest.mark.parametrize("hidden", ["/home", "/root", "/run/user", "/tmp", "/var/tmp"])
def test_a_store_that_the_unit_cannot_see_is_refused_by_its_key(compiled, written, hidden):
    for place in (hidden, f"{hidden}/models", f"/srv/..{hidden}/0/models"):
        written["ollama"]["models_dir"] = place
        (error,) = compiled(dict(written))["_errors"]
        assert "ollama.models_dir" in error
        assert f"is '{place}', expected a folder outside of /home, /root" in error


def test_a_data_folder_that_a_unit_cannot_see_is_refused_unless_the_store_is_elsewhere(compiled, written):
    written["platform"], written["ollama"]["models_dir"] = {"data_root": "/home/admin/ai"}, None
    (error,) = compiled(dict(written))["_errors"]
    assert "platform.data_root" in error
    assert "is '/home/admin/ai', expected a folder outside of /home, /root" in error
    written["ollama"]["models_dir"] = "/srv/models"
    assert compiled(written).get("_errors") is None


@pytest.mark.parametrize("place", ["/homes/models", "/srv/tmp", "/run/users", None])
def test_a_store_that_is_only_named_like_those_is_not(compiled, written, place):
    written["ollama"]["models_dir"] = place
    assert compiled(written).get("_errors") is None


def test_in_docker_nobody_asks_where_the_native_store_is(compiled, written):
    written["ollama"] |= {"mode": "container", "models_dir": "/home/admin/models"}
    assert compiled(written).get("_errors") is None


def test_a_master_adds_nothing_of_it(compiled, monkeypatch, written):
    monkeypatch.setitem(ai_platform.__opts__, "__role", "master")
    assert "platform.hosts" in compiled(written)["_errors"][0]


def test_a_host_without_any_way_to_others_is_itself(monkeypatch):
    class NoWay:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, _):
            raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.socket", NoWay)
    assert single.own_address() == "127.0.0.1"


# -- GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traces", "vendors"),
    [
        ([], []),
        (["proc/driver/nvidia/version"], ["nvidia"]),
        (["dev/nvidiactl"], ["nvidia"]),
        (["dev/kfd"], ["amd"]),
        (["dev/dri/renderD128"], []),  # a screen is no GPU to compute on
    ],
)
def test_a_gpu_is_there_where_its_driver_is_loaded(tmp_path, traces, vendors):
    for trace in traces:
        (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / trace).touch()
    assert gpu.found(tmp_path) == vendors
    assert gpu.used("auto", tmp_path) is bool(vendors)
    assert gpu.used(True, tmp_path) is True
    assert gpu.used(False, tmp_path) is False


@pytest.mark.parametrize(("hook", "vendors"), [("nvidia-container-runtime-hook", ["nvidia", "amd"]), (None, ["amd"])])
def test_a_container_gets_nvidias_devices_only_with_the_toolkit(tmp_path, monkeypatch, hook, vendors):
    for trace in ("usr/lib/wsl/lib/libcuda.so.1", "dev/kfd"):
        (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / trace).touch()
    monkeypatch.setattr(gpu.shutil, "which", {"nvidia-container-runtime-hook": hook}.get)
    assert gpu.in_containers(tmp_path) == vendors


# -- service discovery ---------------------------------------------------------------------------------------------


@pytest.fixture
def rendered(compiled, written):
    """The records of a host that makes itself known, by kind."""
    pillar = compiled(written | {"ollama": written["ollama"] | {"discovery": ["consul", "avahi"]}})
    files = CHECKOUT / "salt/ollama/files"
    return {
        record["kind"]: jinja2.Template(
            (files / f"discovery-{record['kind']}").read_text(), undefined=jinja2.StrictUndefined
        ).render(record=record)
        for record in discovery.records(pillar)
    }


def test_the_record_for_consul_names_port_and_check(rendered):
    service = json.loads(rendered["consul"])["service"]
    assert (service["name"], service["port"]) == ("ollama", 11434)
    assert service["checks"][0]["http"] == "http://127.0.0.1:11434/api/version"


def test_the_record_for_avahi_names_port_and_type(rendered):
    assert "<port>11434</port>" in rendered["avahi"]
    assert "<type>_ollama._tcp</type>" in rendered["avahi"]


def test_no_record_is_wanted_where_none_is_configured(compiled, written):
    pillar = compiled(written)
    assert {record["wanted"] for record in discovery.records(pillar)} == {False}
    assert discovery.daemons(pillar) == {}


@pytest.fixture
def left_behind(rendered, tmp_path):
    """Records of this host's one instance and of one that is gone, and somebody's own."""
    for kind, place in discovery.PLACES.items():
        for name in ("main", "node0", "mine"):
            path = tmp_path / place.format(name).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if name == "mine" else rendered[kind].replace("main", name))
    return tmp_path


@pytest.mark.parametrize("asked", [[], ["consul"]])
def test_a_record_of_an_instance_that_is_gone_is_not_wanted(compiled, written, left_behind, asked):
    written["ollama"]["discovery"] = asked
    found = {(row["kind"], row["name"]): row for row in discovery.records(compiled(written), left_behind)}
    assert {key for key, row in found.items() if row["wanted"]} == {(kind, "main") for kind in asked}
    assert {key for key, row in found.items() if not row["wanted"]} >= {("avahi", "node0"), ("consul", "node0")}
    assert not [key for key in found if key[1] == "mine"]
    stale = found["consul", "node0"]
    assert stale["path"] == str(left_behind / "etc/consul.d/ollama-node0.json")
    assert stale["daemon"] == "consul"


def test_in_docker_no_record_stays(compiled, written, left_behind):
    written["ollama"] |= {"mode": "container", "discovery": ["consul"]}
    pillar = compiled(written)
    found = discovery.records(pillar, left_behind)
    assert {(row["name"], row["wanted"]) for row in found} == {("main", False), ("node0", False)}
    assert len(found) == 4
    assert discovery.daemons(pillar) == {}


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_who_told_of_a_record_reads_its_folder_again_when_it_goes(monkeypatch, tmp_path, test, runs):
    record = tmp_path / "ollama-node0.json"
    record.write_text("{}")
    reload = Mock(return_value=True)
    functions = {"service.status": lambda name: runs, "service.reload": reload}
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    ret = state.record_absent(str(record), "consul")
    assert (ret["result"], record.exists()) == ((None, True) if test else (True, False))
    assert list(ret["changes"]) == ["record"]
    assert reload.called is (runs and not test)
    if not test:
        assert state.record_absent(str(record), "consul")["changes"] == {}
