"""An endpoint in Ollama's form whose times are programmed and noted: what a benchmark says of it can be checked.

A process of its own, so that neither end keeps the other from the interpreter. A prompt that is a JSON object is the
script of its own answer; every other prompt gets the ordinary one. ``GET /sent`` tells when each piece of the
last measured answer was really sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import requests

from aiplatform.ollama import Client

SPIN_SECONDS = 0.002
MODEL_LOAD_MS = 1.0


@dataclass(frozen=True)
class Script:
    """One answer: times in milliseconds, counts of tokens.

    ``thinking`` of the tokens come as thinking; ``empty_first`` pieces without text come before the first token.
    """

    ttft_ms: float = 20.0
    gap_ms: float = 4.0
    tokens: int = 8
    per_piece: int = 1
    empty_first: int = 0
    thinking: int = 0
    usage: bool = True
    prompt_tokens: int = 40

    @property
    def prompt(self) -> str:
        """The prompt that is answered so."""
        return json.dumps(asdict(self))

    def pieces(self) -> Iterator[tuple[float, list[str], bool]]:
        """Yield of each piece when it is due in milliseconds, its tokens, and whether it is thinking."""
        for number in range(self.empty_first):
            yield self.ttft_ms * (number + 1) / (self.empty_first + 1), [], False
        start = 0
        while start < self.tokens:
            part = self.thinking if start < self.thinking else self.tokens
            end = min(start + self.per_piece, part)
            # The first piece is due at the programmed first token; a later one when its last token is made.
            due = self.ttft_ms if start == 0 else self.ttft_ms + (end - self.first) * self.gap_ms
            yield due, [f"t{number} " for number in range(start, end)], start < self.thinking
            start = end

    @property
    def first(self) -> int:
        """The tokens of the first piece."""
        return min(self.per_piece, self.thinking or self.tokens)

    def end(self) -> dict[str, object]:
        """The last piece."""
        last: dict[str, object] = {"response": "", "done": True, "done_reason": "stop"}
        if self.usage:
            eval_ms = self.tokens * self.gap_ms
            prompt_ms = self.ttft_ms - MODEL_LOAD_MS
            last |= {"eval_count": self.tokens, "eval_duration": round(eval_ms * 1e6)}
            last |= {"prompt_eval_count": self.prompt_tokens, "prompt_eval_duration": round(prompt_ms * 1e6)}
            last |= {"load_duration": round(MODEL_LOAD_MS * 1e6)}
            last |= {"total_duration": round((self.ttft_ms + eval_ms) * 1e6)}
        return last


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small pieces leave at once.
    disable_nagle_algorithm = True
    sent: ClassVar[list[tuple[float, int]]] = []

    def do_GET(self):
        answers = {"/sent": _Handler.sent, "/api/ps": {"models": []}, "/api/version": {"version": "truth"}}
        self._send(answers[self.path])

    def do_POST(self):
        started = time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/show":
            self._send({"modelfile": f"FROM /blobs/sha256-{'0' * 64}"})
        elif not body.get("prompt"):
            self._send({"done": True, "done_reason": "load" if body["keep_alive"] else "unload"})
        else:
            text = body["prompt"]
            self._answer(Script(**json.loads(text)) if text.startswith("{") else Script(), body, started)

    def _answer(self, script: Script, body: dict, started: float):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        sent = []
        for due, tokens, thinking in script.pieces():
            _await(started + due / 1000)
            piece: dict[str, object] = {"response": "", "done": False}
            piece["thinking" if thinking else "response"] = "".join(tokens)
            if body.get("logprobs"):
                piece["logprobs"] = [{"token": token, "logprob": 0.0} for token in tokens]
            if tokens:
                sent.append((1000 * (time.monotonic() - started), len(tokens)))
            self._chunk(piece)
        self._chunk(script.end())
        self.wfile.write(b"0\r\n\r\n")
        if not body.get("logprobs"):
            _Handler.sent = sent

    def _chunk(self, piece: dict):
        line = json.dumps(piece).encode() + b"\n"
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    def _send(self, data):
        content = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def _await(moment: float) -> None:
    time.sleep(max(0.0, moment - SPIN_SECONDS - time.monotonic()))
    while time.monotonic() < moment:
        pass


@contextlib.contextmanager
def truth() -> Iterator[Client]:
    """Run the server and yield a client whose connection is made, as in a run."""
    command = [sys.executable, "-m", "tests.functional.truth_server"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        client = Client(f"http://127.0.0.1:{int(process.stdout.readline())}")
        try:
            client.version()
            yield client
        finally:
            client.close()
            process.terminate()


def sent(client: Client) -> list[tuple[float, int]]:
    """When each piece with text was sent, in milliseconds after the request came, and how many tokens it held."""
    return requests.get(f"{client.base_url}/sent", timeout=5).json()


def main() -> None:
    """Serve on a free port of loopback, and print the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
