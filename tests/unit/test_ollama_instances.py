"""What each instance's service is told, and the rendered units: what they must hold and what they must never hold."""

from __future__ import annotations

import shutil
import subprocess

import jinja2
import pytest
import yaml

from aiplatform import instances, numa
from aiplatform.errors import NotFoundError
from tests.conftest import CHECKOUT
from tests.unit.sysfs_trees import Server

FILES = CHECKOUT / "salt/ollama/files"
EXPOSURE = 3.0


@pytest.fixture
def settings():
    """The defaults of the formulas concerned."""
    loaded = {}
    for formula in ("ollama", "models", "platform"):
        loaded |= yaml.safe_load((CHECKOUT / f"salt/{formula}/defaults.yaml").read_text())
    return loaded


@pytest.fixture
def described(settings, tmp_path):
    """The default instances on the reference server."""
    server = Server(sockets=2, cores_per_node=14, threads=2, interleaved=True)
    host = numa.topology(server.build(tmp_path))
    return instances.describe(settings, numa.plan(host, settings["ollama"]["instances"]))


def render(template, **context):
    text = (FILES / template).read_text()
    return jinja2.Template(text, undefined=jinja2.StrictUndefined).render(**context)


def units(settings, described, gpu=False, nvidia=False):
    """Both texts of each instance's unit."""
    texts = {}
    for name, instance in described.items():
        told = {"name": name, "unit": instance["unit"], "models_dir": instances.models_dir(settings)}
        unit = render("ollama.service", **told, ollama=settings["ollama"], gpu=gpu, nvidia=nvidia)
        texts[name] = unit + "\n" + render("override.conf", name=name, instance=instance)
    return texts


def test_ports_units_and_commands(described):
    assert {name: instance["url"] for name, instance in described.items()} == {
        "node1": "http://127.0.0.1:11434",
        "node0": "http://127.0.0.1:11435",
    }
    assert described["node1"]["unit"] == "ollama.service"
    assert described["node0"]["unit"] == "ollama-node0.service"
    assert described["node1"]["command"] == [
        "/usr/bin/numactl",
        "--cpunodebind=1",
        "/opt/ollama/current/bin/ollama",
        "serve",
    ]
    assert described["node1"]["num_thread"] == 14


def test_environment(described):
    found = described["node1"]["environment"]
    expected = {
        "OLLAMA_HOST": "0.0.0.0:11434",
        "OLLAMA_MODELS": "/mnt/ai_data/ollama_models",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_LOAD_TIMEOUT": "15m",
        "HOME": "/var/lib/ollama/node1",
    }
    assert expected.items() <= found.items()
    assert described["node0"]["environment"]["OLLAMA_HOST"] == "0.0.0.0:11435"
    # Neither protects nor binds anything: Ollama does not know them. And a quantised cache was slower on this CPU.
    assert not {"OLLAMA_API_KEY", "OLLAMA_NUM_THREADS", "OLLAMA_KV_CACHE_TYPE"} & found.keys()


def test_the_loaded_limit_leaves_room_beside_the_slots(settings):
    # Three slots each, one of a client's and one incoming; on node1 the embedding model too.
    assert instances.loaded_limit(settings, "node1") == 6
    settings["aliases"]["own"] = {"model": "tiny:1", "instance": "node1"}
    settings["aliases"]["same"] = {"model": "tiny:1", "instance": "node1"}
    assert instances.loaded_limit(settings, "node1") == 7
    assert instances.loaded_limit(settings, "node0") == 5


def test_further_environment_does_not_override_the_platforms(settings):
    settings["ollama"]["environment"] = {"OLLAMA_DEBUG": "1", "OLLAMA_NOPRUNE": "0"}
    found = instances.environment(settings, "node1")
    assert (found["OLLAMA_DEBUG"], found["OLLAMA_NOPRUNE"]) == ("1", "1")


@pytest.mark.parametrize(
    ("host", "url", "bound"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434", "0.0.0.0:11434"),
        ("192.0.2.7", "http://192.0.2.7:11434", "192.0.2.7:11434"),
        ("::", "http://[::1]:11434", "[::]:11434"),
    ],
)
def test_the_address_that_an_instance_listens_on(settings, host, url, bound):
    settings["ollama"]["api_host"] = host
    assert instances.base_url(settings, "node1") == url
    assert instances.environment(settings, "node1")["OLLAMA_HOST"] == bound


def test_an_unknown_instance_is_named(settings):
    with pytest.raises(NotFoundError, match=r"'node7'.*expected: node0 or node1"):
        instances.base_url(settings, "node7")


def test_models_may_lie_elsewhere(settings):
    settings["ollama"]["models_dir"] = "/srv/models"
    assert instances.models_dir(settings) == "/srv/models"


def test_an_unbound_instance_needs_no_numactl(settings, tmp_path):
    host = numa.topology(Server(sockets=2).build(tmp_path))
    binding = numa.plan(host, {"one": {"numa_node": None}})["one"]
    assert instances.command("/opt/ollama", binding) == ["/opt/ollama/current/bin/ollama", "serve"]


@pytest.mark.parametrize("word", ["CPUAffinity", "membind", "NUM_THREADS", "API_KEY", "localalloc"])
def test_units_hold_nothing_that_broke_before(settings, described, word):
    for text in units(settings, described).values():
        assert word not in text


@pytest.mark.parametrize(
    "line",
    [
        "LimitMEMLOCK=infinity",
        "ExecStartPre=+/usr/sbin/nft --terse list table inet ai_platform",
        "LimitNOFILE=65535",
        "OOMScoreAdjust=-500",
        "OOMPolicy=continue",
        "RequiresMountsFor=/mnt/ai_data/ollama_models",
        "Restart=always",
        "RestartSec=3",
        "User=ollama",
        "ReadWritePaths=/mnt/ai_data/ollama_models",
    ],
)
def test_units_hold_what_they_must(settings, described, line):
    for text in units(settings, described).values():
        assert line in text.splitlines()


def test_the_oom_score_can_be_left_alone(settings, described):
    settings["ollama"]["oom_score_adjust"] = None
    assert "OOMScoreAdjust" not in units(settings, described)["node1"]


def test_an_instances_memory_can_be_limited(settings, described):
    assert "MemoryMax" not in units(settings, described)["node1"]
    settings["ollama"]["memory_max_mib"] = 4096
    assert "MemoryMax=4096M" in units(settings, described)["node1"].splitlines()


@pytest.mark.parametrize(("gpu", "nvidia"), [(False, False), (True, False), (True, True)])
def test_devices_are_let_in_where_a_gpu_is_and_nvidias_are_made(settings, described, gpu, nvidia):
    for text in units(settings, described, gpu=gpu, nvidia=nvidia).values():
        lines = text.splitlines()
        assert ("PrivateDevices=true" in lines) is (not gpu)
        # A GPU's compiler writes the programs that it runs.
        assert ("MemoryDenyWriteExecute=true" in lines) is (not gpu)
        assert ("ExecStartPre=-+/usr/bin/nvidia-modprobe -u -c 0" in lines) is nvidia
        assert "ExecStartPre=+/usr/sbin/nft --terse list table inet ai_platform" in lines
        assert "NoNewPrivileges=true" in lines


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed (package systemd)")
@pytest.mark.parametrize("gpu", [False, True])
def test_units_are_confined(settings, described, tmp_path, gpu):
    for name, text in units(settings, described, gpu=gpu, nvidia=gpu).items():
        path = tmp_path / described[name]["unit"]
        path.write_text(text)
        limit = str(int(EXPOSURE * 10))
        words = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={limit}", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout.splitlines()[-1] if done.stdout else done.stderr


def test_instances_that_are_gone_are_known_by_their_mark(settings, described, tmp_path):
    for name, text in units(settings, described).items():
        (tmp_path / described[name]["unit"]).write_text(text)
    (tmp_path / "ollama-vendor.service").write_text("[Unit]\nDescription=Ollama Service\n")
    (tmp_path / "folder.service").mkdir()
    assert instances.retired(["ollama.service", "ollama-node0.service"], tmp_path) == []
    assert instances.retired(["ollama.service"], tmp_path) == ["ollama-node0.service"]


@pytest.fixture
def process(tmp_path):
    """An instance that runs, as /proc shows it; returns that folder."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "environ").write_bytes(b"HOME=/x\0OLLAMA_HOST=0.0.0.0:1\0HTTPS_PROXY=http://me:old@proxy\0")
    return folder.parent


def test_an_instance_that_runs_as_wanted_is_up_to_date(process):
    assert instances.outdated(7, {"OLLAMA_HOST": "0.0.0.0:1"}, process) == {}
    assert instances.outdated(0, {"OLLAMA_HOST": "other"}, process) == {}


def test_an_instance_that_missed_its_restart_is_found_and_no_value_told(process):
    wanted = {"OLLAMA_NUM_PARALLEL": "2", "HTTPS_PROXY": "http://me:new@proxy", "HOME": "/x"}
    found = instances.outdated(7, wanted, process)
    assert found["environment"]["old"] == "other values of HTTPS_PROXY, OLLAMA_NUM_PARALLEL"
    assert "me:" not in str(found)


def test_systemd_reads_a_value_as_it_is_written_in_pillar(settings, described):
    described["node1"]["environment"]["HTTPS_PROXY"] = 'http://me:a%40"b\\@proxy'
    assert 'Environment="HTTPS_PROXY=http://me:a%%40\\"b\\\\@proxy"' in units(settings, described)["node1"].splitlines()
