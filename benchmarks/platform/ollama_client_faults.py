"""What the two clients make of a server that does wrong: the same faults, one after the other, on loopback."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import ollama as official

from aiplatform import answer_cache, calling, structured
from aiplatform import ollama as ours

SECONDS = 1.0
# What has no end of its own ends after this, so that the one who waits for it comes back.
ENDLESS_SECONDS = 4.0
GIGANTIC_BYTES = 24 << 20
LIMITS = ours.Limits(read=SECONDS, total=SECONDS)
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
SHOW = {"modelfile": f"FROM /models/sha256-{'a' * 64}\n", "parameters": "", "template": "", "details": {}}
STEADY = {"options": {"temperature": 0, "seed": 1}}
WIDTH = 150


def line(**piece: object) -> bytes:
    """One piece of a stream."""
    return json.dumps(piece).encode() + b"\n"


DONE = line(response="", done=True, done_reason="stop", eval_count=2)
ANSWER = [line(response="all "), line(response="well"), DONE]


class Faulty(BaseHTTPRequestHandler):
    """Does wrong as the first part of the path says."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        """Answer ``/<fault>/api/...``."""
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        fault, _, path = self.path[1:].partition("/")
        self.asked[fault] += path != "api/show"
        if path == "api/show":
            self.reply(200, json.dumps(SHOW).encode())
            return
        try:
            getattr(self, f"_{fault}")()
        except OSError:  # the client had enough
            self.close_connection = True

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole reply."""
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: Iterator[bytes] | list[bytes], whole: bool = True) -> None:
        """Send a reply piece by piece."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    # -- faults ---------------------------------------------------------------------------------------------------

    def _missing(self) -> None:
        self.reply(404, line(error="model 'm' not found"))

    def _silent(self) -> None:
        time.sleep(2 * SECONDS)  # the silence is the fault
        self.close_connection = True

    def _trickle(self) -> None:
        ends = time.monotonic() + ENDLESS_SECONDS

        def pieces() -> Iterator[bytes]:
            while time.monotonic() < ends:
                yield line(response="a")
                time.sleep(SECONDS / 4)  # the pace is the fault

        self.stream(pieces())

    def _malformed(self) -> None:
        self.stream([ANSWER[0], b"{not json\n"])

    def _cut(self) -> None:
        self.stream(ANSWER[:2])

    def _dropped(self) -> None:
        self.stream(ANSWER[:2], whole=False)

    def _refused(self) -> None:
        self.reply(400, line(error="invalid options: num_ctx"))

    def _failed(self) -> None:
        self.reply(500, line(error="llama runner process has terminated"))

    def _redirect(self) -> None:
        host = self.headers["Host"]
        self.reply(307, b"", Location=f"http://{host}/well/api/generate")

    def _page(self) -> None:
        self.reply(200, b"<!DOCTYPE html><html><body>Sign in</body></html>", Content_Type="text/html")

    def _gigantic(self) -> None:
        piece = b"x" * (1 << 20)
        self.stream(piece for _ in range(GIGANTIC_BYTES >> 20))

    def _types(self) -> None:
        self.stream([line(response=1), DONE])

    def _negative(self) -> None:
        self.stream([line(response="a"), line(response="", done=True, eval_count=-7)])

    # -- what is well, and what becomes well ------------------------------------------------------------------------

    def _well(self) -> None:
        self.stream(ANSWER)

    def _once(self) -> None:
        self.reply(503, line(error="server busy")) if self.asked["once"] % 3 == 1 else self.stream(ANSWER)

    def _other(self) -> None:
        self._missing() if self.body["model"] == "m" else self.stream(ANSWER)

    def _schema(self) -> None:
        text = '{"age": "old"}' if self.asked["schema"] % 2 else '{"age": 36}'
        self.stream([line(response=text), DONE])


FAULTS = {
    "no such model": "missing",
    "nothing listens": "",
    f"silent for more than {SECONDS:g} s": "silent",
    f"a piece each {SECONDS / 4:g} s, {ENDLESS_SECONDS:g} s long; {SECONDS:g} s allowed": "trickle",
    "a line that is no JSON": "malformed",
    "the stream ends before the answer does": "cut",
    "the connection breaks in the middle": "dropped",
    "HTTP 400": "refused",
    "HTTP 500": "failed",
    "HTTP 307 to another address": "redirect",
    "a proxy's web page, HTTP 200": "page",
    f"a line of {GIGANTIC_BYTES >> 20} MiB": "gigantic",
    "a number where text belongs": "types",
    "-7 tokens counted": "negative",
}


@contextmanager
def faulty() -> Iterator[str]:
    """A server that does wrong; gives its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def told(ask: Callable[[], object]) -> str:
    """What came of it: the answer, or the error as its reader sees it."""
    began = time.monotonic()
    try:
        text = f"answer {ask()!r}"
    except Exception as err:  # noqa: BLE001 (whatever it is, that is what is compared)
        text = f"**{type(err).__name__}** {' '.join(str(err).split())}"
    if (seconds := time.monotonic() - began) > 2 * SECONDS:
        text += f" (after {seconds:.1f} s)"
    text = re.sub(r"127\.0\.0\.1:\d+", "server", text)
    short = text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
    return short.replace("|", "\\|")


def official_answer(url: str, model: str = "m", **fields: object) -> str:
    """An answer by the official client, which takes one time-out for everything."""
    client = official.Client(host=url, timeout=SECONDS)
    return "".join(part.response or "" for part in client.generate(model, "Hello.", stream=True, **fields))


def our_answer(url: str) -> str:
    """The same by this platform's client."""
    with ours.Client(url) as client:
        return "".join(chunk.data.get("response", "") for chunk in client.generate("m", "Hello.", limits=LIMITS))


def caller(url: str, **how: object) -> calling.Caller:
    """This platform's client with what a service wants around it."""
    return calling.Caller(ours.Client(url), retries=calling.Retries(base=0.1), **how)


def faults(url: str) -> list[tuple[str, str, str]]:
    """Each fault, and what the official client and ours tell of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    rows = []
    for what, fault in FAULTS.items():
        at = f"{url}/{fault}" if fault else nobody
        rows.append((what, told(lambda at=at: official_answer(at)), told(lambda at=at: our_answer(at))))
    return rows


def remedies(url: str) -> list[tuple[str, str, str]]:
    """What a service has to bear, and what each client does about it by itself."""
    keeper = caller(f"{url}/well", cache=answer_cache.AnswerCache())

    def twice(ask: Callable[[], object]) -> str:
        before = Faulty.asked["well"]
        ask(), ask()
        return f"{Faulty.asked['well'] - before} requests"

    def structure() -> object:
        with_ours = caller(f"{url}/schema")
        return structured.extract(with_ours, "m", "How old?", ["Ada, 36"], SCHEMA)

    return [
        (
            "busy once (HTTP 503), then well",
            told(lambda: official_answer(f"{url}/once")),
            told(lambda: (Faulty.asked.pop("once"), caller(f"{url}/once").generate("m", "Hello.").text)[1]),
        ),
        (
            "the model is missing, another one would do",
            told(lambda: official_answer(f"{url}/other")),
            told(lambda: caller(f"{url}/other", fallback="n").generate("m", "Hello.").text),
        ),
        (
            "the same question twice, without chance",
            twice(lambda: official_answer(f"{url}/well", **STEADY)),
            twice(lambda: keeper.generate("m", "Hello.", **STEADY)),
        ),
        (
            "data that breaks its JSON Schema",
            told(lambda: official_answer(f"{url}/schema", format=SCHEMA)),
            told(lambda: (Faulty.asked.pop("schema"), structure())[1]),
        ),
    ]
