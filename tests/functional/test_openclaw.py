"""The Telegram bot, its own process, between a stand-in of the Bot API and an Ollama that says what a test wants."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aiplatform import wait
from tests import telegram_stand_in
from tests.conftest import CHECKOUT

BOT = CHECKOUT / "salt/openclaw/files/bot.py"
SPEC = importlib.util.spec_from_file_location("openclaw_bot", BOT)
bot = importlib.util.module_from_spec(SPEC)
sys.modules["openclaw_bot"] = bot  # dataclasses look their module up
SPEC.loader.exec_module(bot)

TOKEN = "1234:of-the-stand-in"
FRIEND, OTHER_FRIEND, STRANGER = 7, 8, 666


@dataclass
class Ollama:
    """What the model says, and what it was asked."""

    answer: str = "Fine, thanks."
    status: int = 200
    asked: list[dict[str, Any]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        if path == "/api/show":
            return 200, json.dumps({"details": {"parent_model": "llama3.1:8b"}})
        self.asked.append(body)
        if body["messages"][-1]["content"] == "wait":
            self.hold.wait(20)
        if self.status != 200:
            return self.status, json.dumps({"error": "model 'slot-1' not found"})
        half = len(self.answer) // 2
        pieces = [{"message": {"content": text}} for text in (self.answer[:half], self.answer[half:])]
        return 200, "".join(json.dumps(piece) + "\n" for piece in [*pieces, {"done": True}])


def serve(server: ThreadingHTTPServer) -> str:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    model = Ollama()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, text = model.reply(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = serve(server)
    yield model
    model.hold.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    started = telegram_stand_in.server(0, TOKEN)
    serve(started)
    yield started
    started.shutdown()
    started.server_close()


@pytest.fixture
def telegram(server) -> telegram_stand_in.Telegram:
    return server.RequestHandlerClass.telegram


def start(folder, server, ollama, token=TOKEN) -> subprocess.Popen[str]:
    (folder / "token").write_text(f"{token}\n")
    settings = {
        "telegram_url": f"http://127.0.0.1:{server.server_port}",
        "token_file": str(folder / "token"),
        "ollama_url": ollama.url,
        "model": "slot-1",
        "system": "Be kind.",
        "allowed_users": [FRIEND, OTHER_FRIEND],
        "history": 2,
        "answer_tokens": 64,
        "timeout": 5,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    argv = [sys.executable, str(BOT), str(folder / "config.json")]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def running(tmp_path, server, ollama) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path, server, ollama)
    yield process
    ollama.hold.set()
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert TOKEN not in errors
    assert "Traceback" not in errors, errors


def sent(telegram, to: int, count: int = 1, method: str = "sendMessage") -> list[dict[str, Any]]:
    """The messages that the bot has sent somebody, once there are so many."""

    def found() -> list[dict[str, Any]]:
        rows = [row for row in telegram.seen if row["chat_id"] == str(to) and row["method"] == method]
        return rows if len(rows) >= count else []

    return wait.until(found, 20, 0.05, f"{count} of {method} to {to}")


def texts(telegram, to: int, count: int = 1) -> list[str]:
    return [row["text"] for row in sent(telegram, to, count)]


def test_a_question_is_answered_by_the_slot_and_changes_nothing_about_it(running, telegram, ollama):
    telegram.say(FRIEND, "How are you?")
    assert texts(telegram, FRIEND) == ["Fine, thanks."]
    assert sent(telegram, FRIEND, method="sendChatAction")[0]["action"] == "typing"
    asked = ollama.asked[0]
    assert asked["model"] == "slot-1"
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How are you?"},
    ]
    assert asked["options"] == {"num_predict": 64}
    assert "keep_alive" not in asked


def test_a_stranger_gets_no_word_of_the_model(running, telegram, ollama):
    for text in ("Hello", "/start", "/new"):
        telegram.say(STRANGER, text)
    telegram.say(STRANGER, kind="photo")
    assert texts(telegram, STRANGER, 4) == [bot.STRANGER.format(id=STRANGER)] * 4
    assert not ollama.asked


def test_a_long_answer_comes_whole_in_several_messages(running, telegram, ollama):
    ollama.answer = "\n\n".join(f"{number}: {'word ' * 200}".strip() for number in range(12))
    telegram.say(FRIEND, "A long one, please")
    parts = texts(telegram, FRIEND, 3)
    assert "\n\n".join(parts) == ollama.answer
    assert all(len(part) <= 4096 for part in parts)


def test_a_chat_has_its_own_memory_of_bounded_length(running, telegram, ollama):
    for number in (1, 2, 3):
        telegram.say(FRIEND, f"question {number}")
        sent(telegram, FRIEND, number)
    telegram.say(OTHER_FRIEND, "Hi")
    sent(telegram, OTHER_FRIEND)
    said = [[message["content"] for message in asked["messages"][1:]] for asked in ollama.asked]
    assert said[2] == ["question 2", "Fine, thanks.", "question 3"]
    assert said[3] == ["Hi"]
    telegram.say(FRIEND, "/new")
    sent(telegram, FRIEND, 4)
    telegram.say(FRIEND, "again")
    sent(telegram, FRIEND, 5)
    assert [message["content"] for message in ollama.asked[-1]["messages"][1:]] == ["again"]


def test_one_chat_does_not_wait_for_another(running, telegram, ollama):
    telegram.say(FRIEND, "wait")
    wait.until(lambda: ollama.asked, 20, 0.05, "the first question")
    telegram.say(OTHER_FRIEND, "Hi")
    assert texts(telegram, OTHER_FRIEND) == ["Fine, thanks."]
    assert not [row for row in telegram.seen if row["chat_id"] == str(FRIEND) and row["method"] == "sendMessage"]
    ollama.hold.set()
    assert texts(telegram, FRIEND) == ["Fine, thanks."]


def test_no_haste_of_one_makes_another_wait(running, telegram, ollama):
    for _ in range(20):
        telegram.say(FRIEND, "wait")
    wait.until(lambda: ollama.asked, 20, 0.05, "the first question")
    telegram.say(OTHER_FRIEND, "/start")
    assert "llama3.1:8b" in texts(telegram, OTHER_FRIEND)[0]
    assert len(ollama.asked) == 1, "a chat's questions are answered one after the other"
    ollama.hold.set()
    assert texts(telegram, FRIEND, 20) == ["Fine, thanks."] * 20


def test_a_stranger_who_writes_too_much_is_not_waited_for(running, telegram):
    telegram.flooded, telegram.pause = 20, 60
    for _ in range(20):
        telegram.say(STRANGER, "Hello")
    wait.until(lambda: telegram.flooded == 0, 20, 0.05, "Telegram to ask for a pause each time")
    telegram.say(FRIEND, "Hi")
    assert texts(telegram, FRIEND) == ["Fine, thanks."]


def test_a_telegram_that_does_not_answer_yet_is_waited_for(tmp_path, server, ollama, telegram):
    telegram.down = True
    process = start(tmp_path, server, ollama)
    wait.until(lambda: telegram.refused > 1, 20, 0.05, "the bot to try again")
    telegram.down = False
    telegram.say(FRIEND, "Hi")
    assert texts(telegram, FRIEND) == ["Fine, thanks."]
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert TOKEN not in errors


def test_the_greeting_names_the_model_that_the_slot_holds(running, telegram):
    telegram.say(FRIEND, "/start")
    assert "llama3.1:8b" in texts(telegram, FRIEND)[0]


def test_what_is_no_text_is_declined(running, telegram, ollama):
    telegram.say(FRIEND, kind="photo")
    assert texts(telegram, FRIEND) == [bot.WORDS_ONLY]
    assert not ollama.asked


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusal_of_the_model_is_an_apology_and_is_not_remembered(running, telegram, ollama, status):
    ollama.status = status
    telegram.say(FRIEND, "Hi")
    assert texts(telegram, FRIEND) == [bot.APOLOGY]
    ollama.status = 200
    telegram.say(FRIEND, "Again")
    assert texts(telegram, FRIEND, 2)[1] == "Fine, thanks."
    assert [message["content"] for message in ollama.asked[-1]["messages"][1:]] == ["Again"]


def test_an_empty_answer_is_said_to_be_one(running, telegram, ollama):
    ollama.answer = "  \n"
    telegram.say(FRIEND, "Hi")
    assert texts(telegram, FRIEND) == [bot.EMPTY]


def test_telegrams_wish_for_a_pause_is_met(running, telegram):
    telegram.flooded = 1
    telegram.say(FRIEND, "Hi")
    assert texts(telegram, FRIEND) == ["Fine, thanks."]


def test_a_token_that_telegram_does_not_know_ends_the_bot_without_showing_it(tmp_path, server, ollama):
    process = start(tmp_path, server, ollama, token="99:wrong")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Telegram does not know this token" in errors
    assert "99:wrong" not in errors


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("", 10, []),
        ("short", 10, ["short"]),
        ("one two\n\nthree", 10, ["one two", "three"]),
        ("first line\nsecond", 12, ["first line", "second"]),
        ("some words here", 10, ["some words", "here"]),
        ("abcdefghijklm", 5, ["abcde", "fghij", "klm"]),
        ("if x:\n    y()\n    z()", 14, ["if x:\n    y()", "    z()"]),
        ("😀😀😀", 4, ["😀😀", "😀"]),
        ("x😀😀", 4, ["x😀", "😀"]),
    ],
)
def test_split(text, limit, parts):
    assert bot.split(text, limit) == parts
