"""The two failures that most depends on, in short; tests/soak/test_failures.py has all of them, with people at work."""

from __future__ import annotations

from aiplatform.wait import until
from tests.lab.test_chat import chat
from tests.lab.test_edge import ask, client, key, post

__all__ = ["chat", "client", "key"]

IDM = "https://idm.lab.internal"
# The page to sign in, which Keycloak does not show without its database.
SIGN_IN = (
    "/realms/ai-platform/protocol/openid-connect/auth?client_id=account-console&response_type=code"
    f"&redirect_uri={IDM}/realms/ai-platform/account/&code_challenge={'a' * 43}&code_challenge_method=S256"
)


def completion(client, key, model: str) -> tuple[int, str]:
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    return post(client, "/v1/chat/completions", body, key)


def test_a_killed_database_comes_back_and_the_api_goes_on(client, key, chat, ai_server):
    started = "docker inspect --format '{{.State.StartedAt}}' postgres"
    before = ai_server.run(started).stdout
    ai_server.run("kill -9 $(docker inspect --format '{{.State.Pid}}' postgres)")
    assert completion(client, key, "llama-family")[0] == 200
    until(lambda: chat.ask("/api/models")[0] == 200, 60, 0.5, "the chat to know its people again")
    until(lambda: ask(client, SIGN_IN, host=IDM)[0] == 200, 60, 0.5, "Keycloak's page to sign in")
    assert ai_server.run(started).stdout != before


def test_a_killed_instance_is_told_and_comes_back_with_its_slots_and_the_other_goes_on(client, key, ai_server, master):
    ai_server.run("systemctl kill --signal=KILL ollama")
    status, body = completion(client, key, "llama-family")
    # Nobody waits in vain: systemd may have been faster than the question.
    assert status == 200 or (status == 502 and "does not answer" in body), (status, body)
    assert completion(client, key, "coder-32k")[0] == 200
    until(lambda: completion(client, key, "llama-family")[0] == 200, 60, 0.5, "an answer of the instance")
    until(lambda: all_loaded(master), 120, 1, "all slots loaded")


def all_loaded(master) -> bool:
    rows = master.salt("ai_server", "model_slots.status")["ai_server"]
    return isinstance(rows, list) and all(row["loaded"] for row in rows if row["model"])
