"""What the bot tells systemd of its talk with Telegram."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import CHECKOUT


@pytest.fixture(scope="module")
def bot():
    spec = importlib.util.spec_from_file_location("openclaw_bot", CHECKOUT / "salt/openclaw/files/bot.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["openclaw_bot"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def told(tmp_path, monkeypatch):
    """``told()``: what systemd was told since it was last asked."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))

        def read():
            found = []
            while True:
                try:
                    found.append(systemd.recv(4096).decode())
                except BlockingIOError:
                    return found

        yield read


def test_systemd_is_told_when_telegram_last_answered(bot, told, httpserver):
    httpserver.expect_request("/well").respond_with_json({"ok": True, "result": []})
    httpserver.expect_request("/ill").respond_with_json({"ok": False}, status=502)

    async def asked(path, name):
        polling = bot.Polling(connection_pool_size=1)
        await polling.initialize()
        if name:
            await polling.ready(SimpleNamespace(bot=SimpleNamespace(username=name)))
        answer = await polling.do_request(httpserver.url_for(path), "POST")
        await polling.shutdown()
        return answer[0]

    assert asyncio.run(asked("/well", "x_bot")) == 200
    first, second = told()
    assert first.startswith("READY=1\nSTATUS=answering as @x_bot, heard from Telegram at 20")
    assert second.startswith("STATUS=answering as @x_bot, heard from Telegram at 20")
    assert asyncio.run(asked("/ill", "x_bot")) == 502
    assert len(told()) == 1, "an error is no answer"
    assert asyncio.run(asked("/well", "")) == 200
    assert told() == [], "nobody knows who the bot is yet"


@pytest.mark.parametrize("answers", [True, False])
def test_systemd_waits_for_telegram_only_so_long(bot, told, monkeypatch, answers):
    monkeypatch.setattr(bot, "READY_SECONDS", 0.05)

    async def begin():
        polling = bot.Polling(connection_pool_size=1)
        await polling.initialize()
        if answers:
            await polling.ready(SimpleNamespace(bot=SimpleNamespace(username="x_bot")))
        await asyncio.sleep(0.15)
        await polling.shutdown()

    asyncio.run(begin())
    waiting = "READY=1\nSTATUS=waiting for Telegram, which has not answered yet"
    assert [text == waiting for text in told()] == [not answers]
