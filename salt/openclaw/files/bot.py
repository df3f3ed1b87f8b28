"""A Telegram bot that passes questions to the model of a slot and brings its answers back.

Started by openclaw.service with the path of its settings, a JSON file; the bot's token is in a file of its own, which
those settings name. It keeps nothing on disk: what a chat has said is in memory, the last few messages of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from telegram import Chat, Update
from telegram.constants import ChatAction, MessageLimit
from telegram.error import InvalidToken, RetryAfter, TelegramError
from telegram.ext import (
    Application,
    ApplicationBuilder,
    CommandHandler,
    ContextTypes,
    Defaults,
    MessageHandler,
    filters,
)
from telegram.request import HTTPXRequest

log = logging.getLogger("openclaw")

# Telegram shows "typing" for five seconds after it was told.
TYPING_SECONDS = 4
SEND_ATTEMPTS = 4
# How long systemd waits for Telegram; a token that Telegram does not know ends the bot at once.
READY_SECONDS = 30

APOLOGY = "I could not get an answer from the model just now. Please try again in a minute."
EMPTY = "The model gave an empty answer. Please put the question in another way."
STRANGER = "This bot answers only people on its list. Your Telegram id is {id}: the platform's operator can add it."
GREETING = "Hello! Write to me, and {model} answers. /new makes it forget what we have talked about."
FORGOTTEN = "Done: I start afresh."
WORDS_ONLY = "I read text only."


@dataclass(frozen=True)
class Settings:
    """What the settings file says.

    Attributes:
        telegram_url: base URL of the Bot API, without a slash at its end.
        token_file: the file that holds the bot's token.
        ollama_url: base URL of the instance that holds the slot.
        model: the name that the slot answers to; it follows whatever model the slot holds.
        system: the system prompt; empty for the model's own.
        allowed_users: numeric Telegram ids of those who are answered.
        history: how many earlier messages of a chat the model is given.
        answer_tokens: how long an answer may get.
        timeout: seconds that the model may be silent.
    """

    telegram_url: str
    token_file: str
    ollama_url: str
    model: str
    system: str
    allowed_users: frozenset[int]
    history: int
    answer_tokens: int
    timeout: float

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read the settings file. A key that is missing or unknown raises ``TypeError``."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"allowed_users": frozenset(values["allowed_users"])})


def split(text: str, limit: int = MessageLimit.MAX_TEXT_LENGTH) -> list[str]:
    """Cut a text into messages that Telegram takes; nothing but white space at the cuts is lost.

    The limit counts UTF-16 units, as Telegram does: an emoji is two. A cut is made, in this order, after a paragraph, a
    line or a word of the second half of a message, else wherever the limit is.
    """
    parts, rest = [], text.strip()
    while (end := fitting(rest, limit)) < len(rest):
        signs = ("\n\n", "\n", " ")
        sign = next((sign for sign in signs if rest.rfind(sign, end // 2, end + len(sign)) > 0), "")
        end = rest.rfind(sign, end // 2, end + len(sign)) if sign else end
        parts.append(rest[:end])
        rest = rest[end:].removeprefix(sign)
    return [part for part in (*parts, rest) if part.strip()]


def fitting(text: str, limit: int) -> int:
    """Return how many characters from the start of ``text`` are at most ``limit`` UTF-16 units."""
    units = 0
    for count, character in enumerate(text):
        units += 2 if ord(character) > 0xFFFF else 1
        if units > limit:
            return count
    return len(text)


class Model:
    """The slot's model, asked over Ollama's API."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._client = client

    async def answer(self, messages: list[dict[str, str]]) -> str:
        """Return the model's answer to a conversation.

        Raises ``httpx.HTTPError`` where the instance does not answer, ``ValueError`` with its words where it refuses.
        """
        # Options of loading (num_ctx, num_thread) and keep_alive are left out: they would reload or unpin the slot.
        body = {
            "model": self._settings.model,
            "messages": messages,
            "think": False,
            "options": {"num_predict": self._settings.answer_tokens},
        }
        words = []
        async with self._client.stream("POST", "/api/chat", json=body) as reply:
            if reply.status_code != httpx.codes.OK:
                raise ValueError(f"HTTP {reply.status_code}: {(await reply.aread()).decode(errors='replace')[:300]}")
            async for line in reply.aiter_lines():
                piece = json.loads(line or "{}")
                if "error" in piece:  # Ollama's way to fail after it has said 200
                    raise ValueError(str(piece["error"]))
                words.append(piece.get("message", {}).get("content", ""))
        return "".join(words)

    async def name(self) -> str:
        """Return the name of the model that the slot holds; the slot's own where that cannot be told."""
        try:
            reply = await self._client.post("/api/show", json={"model": self._settings.model})
            held = reply.json()["details"]["parent_model"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            held = ""
        return str(held or self._settings.model)


@dataclass
class Conversation:
    """What was said in a chat; ``turn`` lets one question after the other be answered."""

    messages: deque[dict[str, str]]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Bot:
    """What the bot does with each kind of message."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self._settings = settings
        self._model = model
        self._chats: defaultdict[int, Conversation] = defaultdict(lambda: Conversation(deque(maxlen=settings.history)))

    async def refuse(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        """Tell a stranger the id that an operator would have to add."""
        user = update.effective_user
        log.warning("Refused a message of user %s, who is not in openclaw.allowed_users", user.id if user else "?")
        if user:
            # Not patiently: where a stranger writes too much, Telegram asks for a pause, and they may go without.
            await update.effective_chat.send_message(STRANGER.format(id=user.id))

    async def start(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        """Greet with the name of the model."""
        await self._say(update, GREETING.format(model=await self._model.name()))

    async def forget(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        """Forget what was said in a chat."""
        self._chats.pop(update.effective_chat.id, None)
        await self._say(update, FORGOTTEN)

    async def decline(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        """Say that pictures, voice and files are not read."""
        await self._say(update, WORDS_ONLY)

    async def talk(self, update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
        """Answer a message by the slot's model."""
        chat, question = update.effective_chat, update.effective_message.text
        conversation = self._chats[chat.id]
        async with conversation.turn, typing(chat):
            reply = await self._reply(conversation, question)
        await self._say(update, reply)

    async def _reply(self, conversation: Conversation, question: str) -> str:
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        asked = {"role": "user", "content": question}
        try:
            answer = await self._model.answer([*system, *conversation.messages, asked])
        except (httpx.HTTPError, ValueError) as err:
            # No traceback: it tells an operator nothing more.
            log.error("No answer from %s: %s: %s", self._settings.model, type(err).__name__, err)  # noqa: TRY400
            return APOLOGY
        if not answer.strip():
            return EMPTY
        conversation.messages += [asked, {"role": "assistant", "content": answer}]
        return answer

    async def _say(self, update: Update, text: str) -> None:
        for part in split(text):
            await patiently(lambda part=part: update.effective_chat.send_message(part))


async def patiently(send: Callable[[], Awaitable[object]]) -> None:
    """Send a message, and wait as long as Telegram asks for where there were too many."""
    for _ in range(SEND_ATTEMPTS - 1):
        try:
            await send()
        except RetryAfter as err:
            pause = err.retry_after
            await asyncio.sleep(pause if isinstance(pause, int | float) else pause.total_seconds())
        else:
            return
    await send()


@asynccontextmanager
async def typing(chat: Chat) -> AsyncIterator[None]:
    """Show that an answer is being written, as long as this lasts."""
    done = asyncio.Event()

    async def tell() -> None:
        while not done.is_set():
            try:
                await chat.send_action(ChatAction.TYPING)
            except TelegramError as err:
                log.debug("Typing was not shown: %s", err)
            try:
                await asyncio.wait_for(done.wait(), TYPING_SECONDS)
            except TimeoutError:
                continue

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        done.set()
        await task


async def failed(_update: object, context: ContextTypes.DEFAULT_TYPE) -> None:
    """Note what went wrong between Telegram and the bot; it carries on."""
    log.error("Telegram: %s: %s", type(context.error).__name__, context.error)


class Polling(HTTPXRequest):
    """How Telegram is asked for messages; systemd is told of each answer, which is how the verification sees it."""

    name = ""

    late: asyncio.TimerHandle | None = None

    async def initialize(self) -> None:
        """Begin; systemd waits a while for Telegram to answer, and then lets the bot wait alone."""
        await super().initialize()
        waiting = "READY=1\nSTATUS=waiting for Telegram, which has not answered yet"
        self.late = self.late or asyncio.get_running_loop().call_later(READY_SECONDS, notify, waiting)

    async def ready(self, application: Application[Any, Any, Any, Any, Any, Any]) -> None:
        """Tell systemd that Telegram knows the bot."""
        if self.late:
            self.late.cancel()
        self.name = application.bot.username
        notify(f"READY=1\n{self._status()}")
        log.info("Answering as @%s", self.name)

    async def do_request(self, *args: Any, **more: Any) -> tuple[int, bytes]:
        """Ask once: Telegram answers as soon as there is a message, and after ten seconds without one."""
        status, answer = await super().do_request(*args, **more)
        if self.name and status == httpx.codes.OK:
            notify(self._status())
        return status, answer

    def _status(self) -> str:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return f"STATUS=answering as @{self.name}, heard from Telegram at {at}"


def notify(text: str) -> None:
    """Write to systemd, where it started this process."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as target:
        target.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        target.sendall(text.encode())


def assemble(settings: Settings, token: str, client: httpx.AsyncClient) -> Application[Any, Any, Any, Any, Any, Any]:
    """Return the application: which message goes to which part of the bot."""
    builder = ApplicationBuilder().token(token).base_url(f"{settings.telegram_url}/bot")
    builder = builder.base_file_url(f"{settings.telegram_url}/file/bot")

    async def close(_application: Application[Any, Any, Any, Any, Any, Any]) -> None:
        await client.aclose()

    polling = Polling(connection_pool_size=1)
    builder = builder.get_updates_request(polling).post_init(polling.ready).post_shutdown(close)
    # Nothing waits for what another message takes; a chat's questions wait for each other in Bot.talk.
    application = builder.defaults(Defaults(block=False)).build()
    bot = Bot(settings, Model(settings, client))
    private = filters.ChatType.PRIVATE & filters.UpdateType.MESSAGE
    known = private & filters.User(user_id=settings.allowed_users)
    application.add_handler(CommandHandler("start", bot.start, known))
    application.add_handler(CommandHandler("new", bot.forget, known))
    application.add_handler(MessageHandler(known & filters.TEXT & ~filters.COMMAND, bot.talk))
    application.add_handler(MessageHandler(known & ~filters.TEXT, bot.decline))
    application.add_handler(MessageHandler(private & ~filters.User(user_id=settings.allowed_users), bot.refuse))
    application.add_error_handler(failed)
    return application


class Discreet(logging.Formatter):
    """Leaves the token out of all that is logged: it is in the Bot API's addresses, and in one of its errors."""

    def __init__(self, token: str) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._token = token

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, the token replaced."""
        return super().format(record).replace(self._token, "<token>")


def log_to_journal(token: str) -> None:
    """Log to standard error, which is the journal; no line for each request."""
    handler = logging.StreamHandler()
    handler.setFormatter(Discreet(token))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def main(path: str) -> int:
    """Run until systemd says stop; returns the exit code."""
    settings = Settings.read(Path(path))
    token = Path(settings.token_file).read_text(encoding="utf-8").strip()
    log_to_journal(token)
    limits = httpx.Timeout(settings.timeout, connect=10)
    client = httpx.AsyncClient(base_url=settings.ollama_url, timeout=limits, trust_env=False)
    try:
        # Without an end to its attempts: the bot waits for a Telegram that is not reachable yet.
        assemble(settings, token, client).run_polling(
            bootstrap_retries=-1, allowed_updates=[Update.MESSAGE], drop_pending_updates=False
        )
    except InvalidToken:
        # No traceback: it tells nothing more, and may hold the token.
        log.error("Telegram does not know this token: put the one of @BotFather into Vault, and deploy again")  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
