"""Open WebUI, its vector store and the embedding model on the converged hosts, over their APIs; no browser."""

from __future__ import annotations

import json

import pytest

from aiplatform import completions, wait
from tests.lab.hostile import LOAD, OPTIONS, UNPIN
from tests.lab.test_edge import runners

ADDRESS = "10.89.77.100"
PORTS = {"node1": 11434, "node0": 11435}
BASE = "http://127.0.0.1:8080"
DOCUMENT = "The lighthouse keeper polishes the lamp each evening.\n\nOur bakery sells rye bread on Fridays."
# Other spellings under which Ollama would read another model.
MODEL = ['"Model":"coder-32k:latest"', '"MODEL":"coder-32k:latest"', '"\\u004dodel":"coder-32k:latest"']
# A session of the account that Salt has made, as a sign-on would get it: made with the container's own key.
SESSION = """
import asyncio
from open_webui.models.users import Users
from open_webui.utils.auth import create_token
from open_webui.utils.mfa import get_auth

async def token():
    user = next(user for user in (await Users.get_users())["users"] if user.role == "admin")
    return create_token({"id": user.id, "session_stamp": (await get_auth(user.id)).session_stamp})

print("TOKEN", asyncio.run(token()))
"""
# That account as one whose owner signed on so many seconds ago; without a number, as one that nobody ever signed on to.
SIGN_ON = """
import asyncio, sys, time
from open_webui.models.users import Users

async def sign_on():
    oauth = {"oidc": {"signed_on": int(time.time()) - int(sys.argv[2])}} if sys.argv[2:] else None
    return (await Users.update_user_by_id(sys.argv[1], {"oauth": oauth})).id

print("SIGNED", asyncio.run(sign_on()))
"""
ROLES = """
import asyncio, json, sys
import platform_app
from fastapi import HTTPException
from open_webui.utils.oauth import OAuthManager

async def role(claims):
    try:
        return await OAuthManager.get_user_role(None, None, claims)
    except HTTPException as err:
        return err.status_code

async def roles():
    return [await role(claims) for claims in json.loads(sys.argv[1])]

print("ROLES", json.dumps(asyncio.run(roles())))
"""


def in_container(ai_server, code: str, word: str, *argv: str) -> str:
    """Run Python where and as the chat runs; returns what it printed after ``word``."""
    script = 'set -a; . /run/platform/secrets.env; exec python3 -c "$0" "$@"'
    out = ai_server.run(["docker", "exec", "openwebui", "sh", "-c", script, code, *argv], timeout=180).stdout
    return next(line.removeprefix(f"{word} ") for line in out.splitlines() if line.startswith(f"{word} "))


class Chat:
    """The chat's API, as a person who has signed on."""

    def __init__(self, ai_server) -> None:
        self._host = ai_server
        self._token = in_container(ai_server, SESSION, "TOKEN")

    def ask(self, path: str, body=None, *more: str, token: str | None = None) -> tuple[int, dict]:
        """Return status and JSON of a request; with a body it is a POST. A body that is text is sent as it is."""
        argv = ["curl", "-s", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {token or self._token}", *more]
        if body is not None:
            argv += ["-H", "Content-Type: application/json", "-d", body if isinstance(body, str) else json.dumps(body)]
        out = self._host.run([*argv, f"http://{ADDRESS}:8080{path}"], timeout=180).stdout
        text, _, status = out.rpartition("\n")
        return int(status), json.loads(text or "null")

    def upload(self, text: str) -> str:
        """Upload a document and wait until it is read; returns its id."""
        self._host.run(f"printf %s {json.dumps(text)} > /tmp/chat-test.txt")
        _, made = self.ask("/api/v1/files/", None, "-F", "file=@/tmp/chat-test.txt")
        state = f"/api/v1/files/{made['id']}/process/status"
        wait.until(lambda: self.ask(state)[1]["status"] == "completed", 60, 0.5, "the document to be read")
        return made["id"]


@pytest.fixture(scope="module")
def chat(ai_server) -> Chat:
    return Chat(ai_server)


def loaded(ai_server) -> dict[str, dict]:
    """What each instance has loaded: name and whether it is pinned."""
    return {
        place: {
            row["name"]: row["expires_at"] > "2100"
            for row in ai_server.json(f"curl -sf http://127.0.0.1:{port}/api/ps")["models"]
        }
        for place, port in PORTS.items()
    }


def table(master) -> list[dict]:
    return master.salt("ai_server", "model_slots.table")["ai_server"]


def test_each_name_is_offered_once(master, chat):
    models = chat.ask("/api/models")[1]["data"]
    rows = [row for row in table(master) if row["name"] != "embedding"]
    wanted = {f"{name}:latest" for row in rows for name in row["aliases"] or [row["name"]]}
    assert sorted(model["id"] for model in models) == sorted(wanted)
    assert all(len(model["ollama"]["urls"]) == 1 for model in models)


def test_a_chat_is_answered(chat):
    body = completions.question("llama-family:latest", 8)
    status, answer = chat.ask("/api/chat/completions", body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"]


def test_no_request_reloads_a_slot_or_reaches_the_other_instance(chat, ai_server):
    before, processes = loaded(ai_server), runners(ai_server)
    load = [f'"{key}":{{{",".join(LOAD)}}}' for key in OPTIONS]
    # Without messages Ollama only loads, or unloads: a second each at most.
    for member in [*UNPIN, *load, *MODEL]:
        text = f'{{"model":"llama-family:latest","messages":[],"stream":false,{member}}}'
        assert chat.ask("/ollama/api/chat/1", text)[0] == 200, member
    text = f'{{"model":"llama-family:latest","input":"Hi",{UNPIN[2]},{load[1]},{MODEL[0]}}}'
    assert chat.ask("/ollama/api/embed", text)[0] in (200, 400, 500, 501)
    text = f'{{"model":"llama-family:latest","prompt":"Hi","max_tokens":1,{MODEL[0]}}}'
    assert chat.ask("/ollama/v1/completions", text)[0] == 200
    # A slot that is being unloaded would be loaded anew by this.
    question = {"model": "llama-family:latest", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    assert chat.ask("/ollama/api/chat", question | {"options": {"num_predict": 2}})[0] == 200
    assert loaded(ai_server) == before
    assert runners(ai_server) == processes
    assert all(before["node1"].values())


@pytest.mark.parametrize("number", [0, 1])
def test_no_instance_loads_a_model_that_it_does_not_offer(chat, ai_server, master, number):
    before = loaded(ai_server)
    base = next(row["model"] for row in table(master) if row["name"] == "slot-1")
    for path in ("generate", "embed", "embeddings"):
        for where in (f"/{number}", f"?url_idx={number}"):
            # Without words Ollama only loads.
            body = {"model": base, "prompt": "", "input": ""}
            assert chat.ask(f"/ollama/api/{path}{where}", body)[0] == 403, (path, where)
    assert loaded(ai_server) == before


@pytest.mark.parametrize("path", ["pull", "create", "copy", "push", "unload"])
def test_the_store_is_not_changed_from_the_chat(chat, path):
    assert chat.ask(f"/ollama/api/{path}", {"model": "llama-family:latest"})[0] in (404, 405)


def test_a_document_is_found_by_its_meaning(chat, master):
    file = chat.upload(DOCUMENT)
    query = {"collection_name": f"file-{file}", "query": "Where can I buy something to eat?", "k": 1}
    status, found = chat.ask("/api/v1/retrieval/query/doc", query)
    assert status == 200
    assert "bakery" in found["documents"][0][0]


def test_the_embedding_model_stays_beside_the_slots(chat, ai_server, master):
    chat.upload("Another page.")
    rows = [row for row in table(master) if row["instance"] == "node1"]
    assert "embedding" in [row["name"] for row in rows]
    seen = loaded(ai_server)["node1"]
    assert len(seen) == len(rows)
    assert all(seen.values())


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({}, 403),
        ({"realm_access": {}}, 403),
        ({"realm_access": {"roles": []}}, 403),
        ({"realm_access": {"roles": None}}, 403),
        ({"realm_access": {"roles": "ai-admin"}}, 403),
        ({"realm_access": {"roles": ["offline_access", "AI-ADMIN"]}}, 403),
        ({"realm_access": {"roles": ["offline_access", "ai-user"]}}, "user"),
        ({"realm_access": {"roles": ["ai-admin"]}}, "admin"),
        ({"realm_access": {"roles": ["ai-user", "ai-admin"]}}, "admin"),
    ],
)
def test_the_role_comes_from_the_claim_alone(decided, claims, role):
    assert decided[json.dumps(claims)] == role


@pytest.fixture(scope="module")
def decided(ai_server, request) -> dict:
    """What the running chat's own rule says about each of the claims, asked in one go."""
    marker = next(mark for mark in test_the_role_comes_from_the_claim_alone.pytestmark if mark.name == "parametrize")
    claims = [row[0] for row in marker.args[1]]
    answers = json.loads(in_container(ai_server, ROLES, "ROLES", json.dumps(claims)))
    return dict(zip(map(json.dumps, claims), answers, strict=True))


def test_a_key_of_ones_own_opens_the_api(chat, ai_server):
    status, made = chat.ask("/api/v1/auths/api_key", {})
    assert status == 200
    owner, key = chat.ask("/api/v1/auths/")[1]["id"], made["api_key"]
    try:
        assert chat.ask("/api/models", token=key)[0] == 401
        in_container(ai_server, SIGN_ON, "SIGNED", owner, "0")
        assert chat.ask("/api/models", token=key)[0] == 200
        in_container(ai_server, SIGN_ON, "SIGNED", owner, str(13 * 3600))
        assert chat.ask("/api/models", token=key)[0] == 401
        # Nor does it make another key.
        assert chat.ask("/api/v1/auths/api_key", {}, token=key)[0] == 401
        assert chat.ask("/api/models")[0] == 200
    finally:
        in_container(ai_server, SIGN_ON, "SIGNED", owner)
        assert chat.ask("/api/v1/auths/api_key", None, "-X", "DELETE")[0] == 200


def test_what_an_administrator_changes_does_not_outlive_a_start(chat, ai_server):
    before = chat.ask("/ollama/config")[1]
    changed = {"ENABLE_OLLAMA_API": True, "OLLAMA_BASE_URLS": ["http://192.0.2.1:1"], "OLLAMA_API_CONFIGS": {}}
    assert chat.ask("/ollama/config/update", changed)[0] == 200
    ai_server.run(["docker", "restart", "openwebui"], timeout=120)
    ready = ["curl", "-sf", f"http://{ADDRESS}:8080/ready"]
    wait.until(lambda: ai_server.run(ready, check=False).returncode == 0, 180, 1, "the chat")
    assert chat.ask("/ollama/config")[1] == before


def test_qdrant_opens_to_its_key_alone(master, workstation, ai_server):
    url = f"http://{ADDRESS}:6333"
    codes = [
        master.run(f"curl -s -o /dev/null -w '%{{http_code}}' {url}{path}").stdout
        for path in ("/healthz", "/collections")
    ]
    assert codes == ["200", "401"]
    assert workstation.run(f"curl -s --connect-timeout 2 {url}/healthz", check=False).returncode != 0
    environment = ai_server.run(["docker", "inspect", "qdrant", "openwebui"]).stdout
    secret = ("QDRANT_API_KEY=", "QDRANT__SERVICE__API_KEY=", "WEBUI_SECRET_KEY=", "CLIENT_SECRET=", "DATABASE_URL=")
    assert not [name for name in secret if name in environment]
