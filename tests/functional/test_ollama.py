"""The client and the modules against a real Ollama with a real model."""

from __future__ import annotations

import hashlib
import re

import pytest

from _modules import ollama as module
from _states import ollama as state
from aiplatform import instances, numa, ollama
from aiplatform.settings import read_yaml
from lab import models
from tests.conftest import CHECKOUT
from tests.functional import slot_server
from tests.functional.local_ollama import generates, make_model, rests, serving, weights
from tests.functional.local_server import free_port


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    weights()
    with serving(tmp_path_factory.mktemp("ollama")) as client:
        make_model(client, "gemma:test")
        yield client


def test_this_ollama_knows_every_setting_that_the_units_give_it(tmp_path):
    settings = {}
    for formula in ("ollama", "models", "platform"):
        settings |= read_yaml(CHECKOUT / f"salt/{formula}/defaults.yaml")
    given = instances.environment(settings, "node1") | {"OLLAMA_MODELS": str(tmp_path / "models")}
    given = {key: value for key, value in given.items() if key not in ("HOME", "OLLAMA_HOST")}
    with serving(tmp_path, **given):
        log = (tmp_path / "ollama.log").read_text()
    heard = dict(re.findall(r"(OLLAMA_\w+):(\S*)", log))
    assert given.keys() <= heard.keys()
    switches = ("OLLAMA_NOPRUNE", "OLLAMA_NO_CLOUD", "OLLAMA_FLASH_ATTENTION")
    assert {heard[key] for key in switches} == {"true"}
    for number in ("OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS"):
        assert heard[number] == given[number]
    assert heard["OLLAMA_LOAD_TIMEOUT"] == "15m0s"
    assert heard["OLLAMA_KEEP_ALIVE"].startswith("25620")  # hours: for ever


def test_version_tags_and_show(client):
    assert client.version().count(".") == 2
    assert "gemma:test" in [row["name"] for row in client.tags()]
    assert client.has("Gemma:TEST")
    assert "<start_of_turn>" in client.show("gemma:test")["template"]


def test_the_same_weights_have_one_digest_under_two_names(client):
    client.copy("gemma:test", "twin")
    list(client.create("alias", **{"from": "gemma:test", "parameters": {"num_ctx": 1024}}))
    manifests = {row["name"]: row["digest"] for row in client.tags()}
    assert manifests["alias:latest"] != manifests["gemma:test"]
    digests = {client.digest(name) for name in ("gemma:test", "twin", "alias")}
    assert digests == {models.BASE_SHA256}
    client.delete("twin")
    client.delete("alias")
    assert not client.has("twin")
    assert client.has_blob(models.BASE_SHA256)


def test_load_pins_and_unload_waits(client):
    client.load("gemma:test")
    (row,) = client.ps()
    assert row["name"] == "gemma:test"
    assert row["expires_at"] > "2200"  # pinned
    assert client.loaded("gemma:test")
    client.unload("gemma:test")
    assert client.ps() == []


def test_unload_by_another_name_of_the_weights(client):
    client.copy("gemma:test", "twin")
    client.load("gemma:test")
    assert client.loaded("twin")
    client.unload("twin")
    assert client.ps() == []
    client.delete("twin")


def test_generate_streams_with_growing_times(client):
    chunks = list(client.generate("gemma:test", "Say hello."))
    times = [chunk.at for chunk in chunks]
    assert times == sorted(times)
    assert len(chunks) > 2
    assert "".join(chunk.data["response"] for chunk in chunks).strip()
    assert chunks[-1].data["eval_count"] >= 1


def test_chat_streams(client):
    chunks = list(client.chat("gemma:test", [{"role": "user", "content": "Say hello."}]))
    assert "".join(chunk.data["message"]["content"] for chunk in chunks).strip()


def test_a_stream_can_be_left_and_the_next_one_is_answered(client):
    stream = client.generate("gemma:test", "Count to a thousand.", options={"num_predict": 2000})
    next(stream)
    generates(client, seconds=1)
    stream.close()
    rests(client)
    assert list(client.generate("gemma:test", "Say hello.", options={"num_predict": 2}))[-1].data["done"]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.show("nobody"),
        lambda client: client.delete("nobody"),
        lambda client: client.copy("nobody", "somebody"),
        lambda client: client.load("nobody"),
        lambda client: list(client.generate("nobody", "hi")),
    ],
)
def test_a_model_that_is_not_there(client, call):
    with pytest.raises(ollama.ModelNotFound, match="nobody"):
        call(client)


def test_a_model_of_no_embeddings_says_so(client):
    with pytest.raises(ollama.OllamaError):
        client.embed("gemma:test", ["text"])


def test_the_runner_is_found_and_its_pages_are_counted(client):
    client.load("gemma:test")
    server = next(pid for pid in _servers(client))
    found = numa.runners(server)
    assert [path.endswith(f"sha256-{models.BASE_SHA256}") for path in found.values()] == [True]
    held = numa.residency(next(iter(found)), None)
    assert sum(held["bytes"].values()) > weights().stat().st_size / 2


def _servers(client):
    port = client.base_url.rpartition(":")[2]
    for folder in numa.PROC.glob("[0-9]*"):
        try:
            if f"OLLAMA_HOST=127.0.0.1:{port}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"serve" in words:
                    yield int(folder.name)
        except OSError:
            continue


@pytest.fixture
def registry():
    """A registry with the model ``library/small:1``."""
    layer, config = b"x" * 4096, b"{}"
    digests = ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in (layer, config)]
    kinds = ["application/vnd.ollama.image.model", "application/vnd.docker.container.image.v1+json"]
    sizes = [len(layer), len(config)]
    entries = [{"mediaType": k, "digest": d, "size": s} for k, d, s in zip(kinds, digests, sizes, strict=True)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": entries[1],
        "layers": entries[:1],
    }
    blobs = dict(zip(digests, (layer, config), strict=True))
    with slot_server.registry(blobs, {"library/small:1": manifest}) as address:
        yield address


def test_pull_from_a_plain_registry_by_host_and_port(client, registry):
    name = f"{registry}/library/small:1"
    events = list(client.pull(name, insecure=True))
    assert events[-1] == {"status": "success"}
    assert any(event.get("completed") == 4096 for event in events)
    assert client.has(name)
    assert client.has_blob(hashlib.sha256(b"x" * 4096).hexdigest())
    client.delete(name)


def test_a_model_that_the_registry_has_not(client, registry):
    with pytest.raises(ollama.ModelNotFound, match="file does not exist"):
        list(client.pull(f"{registry}/library/absent:1", insecure=True))


def test_a_registry_that_is_not_there(client):
    with pytest.raises(ollama.OllamaError):
        list(client.pull(f"127.0.0.1:{free_port()}/library/small:1", insecure=True))


# -- the modules --------------------------------------------------------------------------------------------------


@pytest.fixture
def pillar(client, monkeypatch):
    """The module and the state as on a host whose instance ``one`` is the test's."""
    port = int(client.base_url.rpartition(":")[2])
    pillar = {"ollama": {"api_host": "127.0.0.1", "instances": {"one": {"port": port}}}}
    monkeypatch.setattr(module, "__pillar__", pillar, raising=False)
    monkeypatch.setattr(module, "__context__", {}, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)


def test_the_module_speaks_to_an_instance_by_name(pillar):
    assert module.version("one").count(".") == 2
    assert "gemma:test" in [row["name"] for row in module.list_models("one")]
    assert module.digest("one", "gemma:test") == models.BASE_SHA256
    assert module.load("one", "gemma:test")
    assert module.ps("one")
    answer = module.generate("one", "gemma:test", "Say hello.", options={"num_predict": 8})
    assert answer["text"].strip()
    assert module.unload("one", "gemma:test")
    assert module.ps("one") == []


def test_ready_awaits_the_instance_and_checks_its_version(pillar, client):
    assert state.ready("one", client.base_url, client.version(), timeout=10)["result"] is True
    other = state.ready("one", client.base_url, "9.9.9", timeout=10)
    assert other["result"] is False
    assert "9.9.9" in other["comment"]
    dead = state.ready("one", f"http://127.0.0.1:{free_port()}", "9.9.9", timeout=0.5)
    assert dead["result"] is False
    assert "journalctl -t ollama-one" in dead["comment"]
