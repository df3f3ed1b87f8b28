"""The API as tools meet it: the official clients from PyPI, on another host, through names, TLS and the proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from aiplatform.wait import until
from lab.settings import cache
from tests.lab.test_edge import API, AUTHORITY, client, made

__all__ = ["client"]

SCRIPT = Path(__file__).with_name("api_clients.py")
CLIENTS = ("ollama", "openai")
PACKAGES = [f"{name}=={version(name)}" for name in CLIENTS]
THERE = "/opt/api-clients"
EVERYTHING = ("list", "chat", "coder", "stream", "embeddings", "structured", "unknown", "pull", "delete")


def kept() -> Path:
    """The packages for the workstation's Python, fetched once and kept in the lab's cache."""
    folder = cache() / "api-clients" / "-".join(PACKAGES)
    if not (folder / "openai").is_dir():
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "--upgrade"]
        argv += ["--python-version", "3.11", "--only-binary=:all:", *PACKAGES]
        subprocess.run(argv, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def tool(client):
    """``tool(key, *calls)`` makes these calls at the workstation with both clients, which are gone afterwards."""
    client.run(f"mkdir -p {THERE}")
    for source in (f"{kept()}/.", str(SCRIPT)):
        subprocess.run(
            ["docker", "cp", source, f"{client.container}:{THERE}/"], check=True, capture_output=True, timeout=120
        )

    def ask(key: str, *calls: str) -> dict:
        command = f"SSL_CERT_FILE={AUTHORITY} PYTHONPATH={THERE} python3 {THERE}/api_clients.py {API} {' '.join(calls)}"
        return json.loads(client.run(f"{command} <<'KEY'\n{key}\nKEY", timeout=300).stdout)

    yield ask
    client.run(f"rm -rf {THERE}")


@pytest.fixture(scope="module")
def answers(tool, master):
    """What everything came to with a key for everything, by client."""
    keys = made(master, "lab-clients")
    yield tool(next(keys), *EVERYTHING)
    next(keys, None)


@pytest.fixture(params=CLIENTS)
def kind(request):
    return request.param


def test_the_list_has_the_names_of_slots_and_aliases_alone(answers, kind):
    names = {name.removesuffix(":latest") for name in answers[kind]["list"]}
    assert {"slot-1", "llama-family", "coder-32k", "embedding"} <= names
    assert not [name for name in names if "/" in name]


def test_general_and_coding_models_chat_at_one_address(answers, kind):
    assert answers[kind]["chat"]
    assert answers[kind]["coder"]


def test_a_stream_comes_piece_by_piece(answers, kind):
    found = answers[kind]["stream"]
    assert found["text"]
    assert found["pieces"] >= 3
    # All at once would be a proxy that holds it back.
    assert found["seconds"] > 0.05


def test_embeddings_are_vectors_of_one_size(answers, kind):
    sizes = set(answers[kind]["embeddings"])
    assert len(sizes) == 1
    assert sizes.pop() >= 100


def test_structured_output_has_the_schema(answers, kind):
    found = answers[kind]["structured"]
    assert {key: type(value) for key, value in found.items()} == {"name": str, "red": bool}


def test_an_unknown_model_is_named_in_an_error_of_the_clients_own(answers):
    assert answers["ollama"]["unknown"] == {"error": "ResponseError", "status": 404, "says": "model 'gpt-4o' not found"}
    found = answers["openai"]["unknown"]
    assert (found["error"], found["status"]) == ("NotFoundError", 404)
    assert "gpt-4o" in found["says"]["message"]


def test_no_client_changes_the_store(answers):
    refused = [answers["ollama"]["pull"], answers["ollama"]["delete"], answers["openai"]["delete"]]
    assert [found["status"] for found in refused] == [403, 403, 403]


def refusal(answers, kind):
    """Status, the client's class of error, and what it says, of a call that was refused."""
    found = answers[kind]["list"]
    says = found["says"] if kind == "ollama" else found["says"]["message"]
    return found["status"], found["error"], says


REFUSED = {"ollama": "ResponseError", "openai": "AuthenticationError"}


@pytest.mark.parametrize("key", ["", "wrong", "a" * 64], ids=["no key", "wrong key", "well-formed wrong key"])
def test_without_a_good_key_the_client_is_told_that_it_needs_one(tool, kind, key):
    found = tool(key, "list", "chat")
    status, error, says = refusal(found, kind)
    assert (status, error) == (401, REFUSED[kind])
    assert "API key is needed" in says
    assert found[kind]["chat"]["status"] == 401


def test_a_revoked_key_is_refused_to_both(tool, master):
    keys = made(master, "lab-leaver")
    key = next(keys)
    before = tool(key, "list")
    assert before["ollama"]["list"]
    assert before["openai"]["list"]
    next(keys, None)
    after = until(lambda: none_let_in(tool(key, "list")), 3, 0.1, "the revoked key to be refused")
    for name in CLIENTS:
        assert refusal(after, name)[:2] == (401, REFUSED[name])


def none_let_in(found: dict) -> dict | None:
    return found if all(isinstance(found[name]["list"], dict) for name in CLIENTS) else None
