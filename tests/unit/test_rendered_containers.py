"""What Docker is told of the platform's containers, out of the rendered states and the shipped pillar."""

from __future__ import annotations

import pytest

from aiplatform import containers
from tests.unit import test_ollama_container
from tests.unit.test_render import compile_state, options, pillars, server

__all__ = ["compile_state", "options", "pillars", "server"]

SECOND = 10**9
PROFILES = ("local", "dev", "prod", "service")


@pytest.fixture
def rendered(compile_state, pillars):
    """``rendered(formula)``: the state of its container, what Docker is told of it, and the folders of the host."""

    def found(formula, minion="ai_server"):
        low = compile_state(formula, minion, "Debian 12")
        chunk = next(row for row in low if (row["state"], row["fun"]) == ("platform_container", "running"))
        settings = pillars[minion]["containers"]
        wanted = {key: value for key, value in chunk.items() if key not in ("image", "name", "timeout")}
        parts = containers.specification(settings, formula, chunk["image"], **wanted)
        makers = (("file", "directory"), ("platform_folder", "owned"))
        folders = {row["name"]: row for row in low if (row["state"], row["fun"]) in makers}
        return chunk, containers.engine_config(formula, parts, {}), folders

    return found


def test_keycloak_is_the_pinned_one_with_a_folder_of_its_own(rendered, pillars):
    pillar = pillars["ai_server"]
    data, keycloak = f"{pillar['platform']['data_root']}/keycloak", pillar["keycloak"]
    chunk, told, folders = rendered("keycloak")
    assert keycloak["version"] == "26.0.7"
    assert told["Image"] == f"quay.io/keycloak/keycloak@{keycloak['digest']}"
    assert keycloak["digest"].startswith("sha256:")
    assert told["User"] == f"{keycloak['uid']}:0"
    assert keycloak["uid"] > 20000, "a user that no host has"
    assert (folders[data]["user"], folders[data]["mode"]) == (keycloak["uid"], "0700")
    assert chunk["volumes"][data] == "/opt/keycloak/data"
    environment = dict(entry.split("=", 1) for entry in told["Env"])
    assert environment["KC_DB_URL_HOST"] == "postgres"


def test_the_administrators_password_is_kept_until_keycloak_has_the_new_one(compile_state):
    low = {row["__id__"]: row for row in compile_state("keycloak", "ai_server", "Debian 12")}
    change, kept = low["keycloak-admin"], low["keycloak-admin-kept"]
    assert change["previous"] == kept["name"]
    assert change["require"] == [{"platform_container": "keycloak"}]
    assert kept["require"] == [{"keycloak": "keycloak-admin"}]
    # The container sees its own files, and is made anew where they change.
    assert not kept["name"].startswith(f"{low['keycloak']['files']}/")


def test_qdrant_is_kept_published_and_asked_as_the_page_says(rendered, pillars):
    pillar = pillars["ai_server"]
    data, qdrant = f"{pillar['platform']['data_root']}/qdrant", pillar["qdrant"]
    chunk, told, folders = rendered("qdrant")
    host = told["HostConfig"]
    assert told["Image"].startswith("docker.io/qdrant/qdrant")
    assert chunk["volumes"][f"{data}/storage"] == "/qdrant/storage"
    assert folders[data]["uid"] == qdrant["uid"]
    assert "storage" in folders[data]["folders"]
    assert host["RestartPolicy"] == {"Name": "unless-stopped"}
    # Without gRPC, and never on all addresses.
    published = {"6333/tcp": [{"HostIp": pillar["address"], "HostPort": str(qdrant["port"])}]}
    assert host["PortBindings"] == published
    assert "GET /healthz" in told["Healthcheck"]["Test"][-1]


def test_coredns_may_have_what_its_images_program_carries(rendered):
    """Upstream's image has ``setcap cap_net_bind_service=+ep /coredns``: the kernel starts it in no other container."""
    host = rendered("coredns", "coredns_host")[1]["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_BIND_SERVICE"])


def test_qdrant_is_awaited_for_as_long_as_pillar_says(rendered, pillars):
    """``platform_container.running`` waits for the health check, see test_containers."""
    chunk, told, _ = rendered("qdrant")
    assert chunk["timeout"] == pillars["ai_server"]["qdrant"]["ready_timeout"] == 120
    assert told["Healthcheck"]["Interval"] <= 5 * SECOND


@pytest.mark.parametrize("name", PROFILES)
def test_ollama_is_asked_for_its_health_as_often_as_asked_for(name):
    health = test_ollama_container.engine(name=name)["Healthcheck"]
    wanted = {"Interval": 30 * SECOND, "Timeout": 10 * SECOND, "StartPeriod": 60 * SECOND, "Retries": 3}
    assert {key: health[key] for key in wanted} == wanted


def test_what_a_voice_assistant_calls_has_its_memory_model_and_context():
    told = test_ollama_container.engine(name="service")
    host = told["HostConfig"]
    assert (host["Memory"], host["MemoryReservation"]) == (8 << 30, 6 << 30)
    assert [mount["Source"] for mount in host["Mounts"]] == ["ollama-service_data"]
    assert host["PortBindings"] == {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": "11438"}]}
    assert "OLLAMA_CONTEXT_LENGTH=8192" in told["Env"]
    profiles = test_ollama_container.ollama_container.profiles(test_ollama_container.effective(run=["service"]))
    assert profiles["service"]["models"] == ["gemma3:4b"]
