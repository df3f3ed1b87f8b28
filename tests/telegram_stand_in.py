"""A stand-in for Telegram's Bot API, for tests: what python-telegram-bot asks, and a way in for the test's people.

Real ones are out of reach of a machine without the Internet. Runs on any Python, with nothing but what comes with it:

    python3 telegram_stand_in.py PORT TOKEN

Beside ``/bot<token>/<method>`` it has ``POST /stand-in/say`` ({"user": 7, "text": "Hi"}; ``kind: photo`` for a message
without text), ``POST /stand-in/flood`` (the next message is refused for a second) and ``GET /stand-in/seen`` (the
messages and actions that the bot has sent).
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

LIMIT = 4096
ME = {"id": 4242, "is_bot": True, "first_name": "Stand-in", "username": "stand_in_bot"}


class Telegram:
    """What was written to the bot, and what it has sent."""

    def __init__(self, token: str) -> None:
        """Take the one token that this Telegram knows."""
        self.token = token
        self.seen: list[dict[str, Any]] = []
        self.flooded, self.pause = 0, 1
        self.down, self.refused = False, 0
        self._updates: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._news = threading.Condition()

    def say(self, user: int, text: str = "", kind: str = "text") -> dict[str, Any]:
        """Let a person write to the bot."""
        person = {"id": user, "is_bot": False, "first_name": f"User {user}"}
        chat = {"id": user, "type": "private", "first_name": f"User {user}"}
        message: dict[str, Any] = {"message_id": next(self._numbers), "date": int(time.time()), "chat": chat}
        message["from"] = person
        if kind == "text":
            message["text"] = text
            if text.startswith("/"):
                message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text.split()[0])}]
        else:
            message["photo"] = [{"file_id": "a", "file_unique_id": "b", "width": 1, "height": 1}]
        with self._news:
            self._updates.append({"update_id": next(self._numbers), "message": message})
            self._news.notify_all()
        return message

    def get_updates(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        """Wait for messages, as the Bot API does; those before ``offset`` are done with."""
        offset, until = int(asked.get("offset", 0)), time.monotonic() + float(asked.get("timeout", 0))
        with self._news:
            self._updates = [update for update in self._updates if update["update_id"] >= offset]
            while not self._updates and (left := until - time.monotonic()) > 0:
                self._news.wait(left)
            return list(self._updates)

    def answer(self, method: str, asked: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Return status and body of a call of the Bot API."""
        if self.down:
            self.refused += 1
            return 503, {"ok": False, "error_code": 503, "description": "Service Unavailable"}
        if method == "getUpdates":
            return 200, {"ok": True, "result": self.get_updates(asked)}
        if method == "getMe":
            return 200, {"ok": True, "result": ME}
        if method not in ("sendMessage", "sendChatAction"):
            return 200, {"ok": True, "result": True}
        if method == "sendMessage" and (refusal := self._refusal(asked.get("text", ""))):
            return refusal
        self.seen.append({"method": method, "at": time.time(), **asked})
        if method == "sendChatAction":
            return 200, {"ok": True, "result": True}
        chat = {"id": int(asked["chat_id"]), "type": "private"}
        sent = {"message_id": next(self._numbers), "date": int(time.time()), "chat": chat, "text": asked["text"]}
        return 200, {"ok": True, "result": sent}

    def _refusal(self, text: str) -> tuple[int, dict[str, Any]] | None:
        if self.flooded:
            self.flooded -= 1
            said = f"Too Many Requests: retry after {self.pause}"
            wait = {"description": said, "parameters": {"retry_after": self.pause}}
            return 429, {"ok": False, "error_code": 429, **wait}
        if not text.strip() or len(text.encode("utf-16-le")) // 2 > LIMIT:
            what = "message is too long" if text.strip() else "message text is empty"
            return 400, {"ok": False, "error_code": 400, "description": f"Bad Request: {what}"}
        return None


class Handler(BaseHTTPRequestHandler):
    """The two ways in: the bot's and the test's."""

    telegram: Telegram
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a question."""
        self._respond()

    def do_POST(self) -> None:
        """Answer a call."""
        self._respond()

    def log_message(self, *_: object) -> None:
        """Say nothing: addresses hold the token."""

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        status, data = self._route(self.path.partition("?")[0].strip("/"), body)
        text = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _route(self, path: str, body: str) -> tuple[int, Any]:
        known = f"bot{self.telegram.token}/"
        if path.startswith(known):
            return self.telegram.answer(path.removeprefix(known), dict(parse_qsl(body)))
        if path == "stand-in/say":
            return 200, self.telegram.say(**json.loads(body))
        if path == "stand-in/flood":
            self.telegram.flooded += 1
            return 200, True
        if path == "stand-in/seen":
            return 200, self.telegram.seen
        return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}


def server(port: int, token: str) -> ThreadingHTTPServer:
    """Return the server, not running yet; port 0 takes a free one."""
    handler = type("Bound", (Handler,), {"telegram": Telegram(token)})
    return ThreadingHTTPServer(("0.0.0.0", port), handler)


if __name__ == "__main__":
    server(int(sys.argv[1]), sys.argv[2]).serve_forever()
