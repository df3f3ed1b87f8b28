"""The checks of the chat, its vector store and the bot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from aiplatform import verify_chat
from aiplatform.checks import Host, run

TOKEN = "77:a-token"


def at_work(name="x_bot", seconds=10):
    """A bot's unit, as systemd shows it."""
    at = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
    return {"ActiveState": "active", "StatusText": f"answering as @{name}, heard from Telegram at {at}"}


@dataclass
class World:
    """A host on which all is well, to be spoilt."""

    server: object
    token: str = TOKEN
    known: str = TOKEN
    shown: dict = field(default_factory=at_work)
    config: dict = field(
        default_factory=lambda: {"oauth": {"providers": {"oidc": "P"}}, "features": {"enable_signup": False}}
    )
    closed: int = 401
    vector: list = field(default_factory=lambda: [0.1, 0.2])

    def host(self, roles=("ai_server",), vault=None):
        port = self.server.port
        pillar = {
            "roles": list(roles),
            "platform": {"hosts": {"ai": {"address": "127.0.0.1", "roles": ["ai_server"]}}},
            "vault": {"host": vault},
            "services": {"qdrant": {"port": port}, "openwebui": {"port": port}},
            "openwebui": {"embedding": "embedding"},
            "openclaw": {"telegram_url": f"http://127.0.0.1:{port}/telegram"},
            "aliases": {"embedding": {"model": "e:1", "instance": "node1"}},
            "ollama": {"api_host": "127.0.0.1", "instances": {"node1": {"port": port}}},
        }
        salt = {
            "platform_secret.read": lambda path, key: "right",
            "platform_secret.optional": lambda path, key: self.token,
            "service.show": lambda unit: self.shown,
        }
        serve = self.server.expect_request
        serve(f"/telegram/bot{self.known}/getMe").respond_with_json({"ok": True, "result": {"username": "x_bot"}})
        serve("/healthz").respond_with_data("healthz check passed")
        serve("/ready").respond_with_json({"status": True})
        serve("/api/config").respond_with_json(self.config)
        serve("/api/models").respond_with_json({}, status=self.closed)
        serve("/api/embed").respond_with_json({"embeddings": [self.vector]})
        serve("/collections", headers={"api-key": "right"}).respond_with_json({})
        serve("/collections").respond_with_data("no", status=self.closed)
        return Host("ai", pillar, {}, salt, {})


@pytest.fixture
def world(httpserver):
    return World(httpserver)


def failed(world):
    found = {name: run(name, check) for name, check in verify_chat.checks(world.host()).items()}
    return {name: finding.actual for name, finding in found.items() if not finding.ok}


def test_all_is_well(world):
    assert failed(world) == {}


def test_another_host_is_not_asked(world):
    assert verify_chat.checks(world.host(roles=("nginx_proxy",))) == {}
    assert verify_chat.checks(world.host(vault="another")) == {}


def test_a_bot_without_a_token_is_no_fault(world):
    world.token, world.shown = "", {}
    assert failed(world) == {}


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        ({"closed": 200}, {"qdrant_key", "chat_closed"}),
        ({"shown": {"ActiveState": "failed", "StatusText": ""}}, {"bot"}),
        ({"shown": {"ActiveState": "active", "StatusText": ""}}, {"bot"}),
        ({"shown": {"ActiveState": "active", "StatusText": "answering as @x_bot"}}, {"bot"}),
        ({"shown": at_work("old_bot")}, {"bot"}),
        ({"shown": at_work() | {"ActiveState": "deactivating"}}, {"bot"}),
        ({"shown": at_work(seconds=100)}, {"bot"}),
        ({"known": "77:another"}, {"bot"}),
        ({"config": {"oauth": {"providers": {}}, "features": {}}}, {"chat_sign_on"}),
        ({"config": {"oauth": {"providers": {"oidc": "P"}}, "features": {"enable_signup": True}}}, {"chat_sign_on"}),
        ({"vector": []}, {"embedding"}),
    ],
)
def test_a_fault_is_found(world, spoil, wrong):
    for name, value in spoil.items():
        setattr(world, name, value)
    assert failed(world).keys() == wrong


def test_a_token_that_was_revoked_is_found_while_the_bot_still_runs(world):
    world.known = "77:another"
    assert failed(world) == {"bot": "HTTP 500"}


@pytest.mark.parametrize("token", [TOKEN, "77:a token\twith white space"])
def test_the_bots_token_is_never_shown(world, caplog, token):
    world.token = token
    host = world.host()
    world.server.stop()
    caplog.set_level("DEBUG")
    try:
        found = run("bot", verify_chat.checks(host)["bot"])
    finally:
        world.server.start()
    assert not found.ok
    assert token not in f"{found}{caplog.text}"


def test_services_that_are_down_are_failed_checks(world):
    host = world.host()
    world.server.stop()
    found = {name: run(name, check).ok for name, check in verify_chat.checks(host).items()}
    assert [name for name, ok in found.items() if ok] == []
    world.server.start()
