"""Runs on ai_server, by `python3 -`: how many tokens a second instances decode together, bound or not, hog or not.

Its argument is one JSON: ``{"groups": {NAME: [[URL, MODEL, OPTIONS], ...]}, "windows": [[GROUP, HOGS], ...], "seconds":
S, "servers": {PORT: ENVIRONMENT}, "program": PATH}``; it prints the rate of each window. HOGS is how many processes
compute meanwhile, each with one thread and bound to nothing: the scheduler places them. The servers are started for it,
bound to nothing, and stopped.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import urlsplit

START_SECONDS = 60
# It ends by itself, too, should nobody be left to end it.
HOG = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end:\n    pass"


class Stream(threading.Thread):
    """One client that asks again and again, and counts the tokens that come."""

    def __init__(self, url: str, model: str, options: dict) -> None:
        super().__init__(daemon=True)
        self.address = urlsplit(url).netloc
        self.body = json.dumps({"model": model, "prompt": "The sea", "raw": True, "options": options})
        self.tokens = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        """Count until stopped."""
        while not self.stopped.is_set():
            connection = http.client.HTTPConnection(self.address, timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/api/generate", self.body)
                for line in connection.getresponse():
                    if "error" in json.loads(line):
                        raise SystemExit(line.decode())
                    self.tokens += 1
                    if self.stopped.is_set():
                        break  # closing the connection ends the answer there too


def rate(clients: list, hogs: int, seconds: float) -> float:
    """Tokens a second of all clients together, counted once each of them decodes."""
    streams = [Stream(*client) for client in clients]
    hog = [sys.executable, "-c", HOG, str(START_SECONDS + seconds)]
    beside = [subprocess.Popen(hog) for _ in range(hogs)]
    try:
        for stream in streams:
            stream.start()
        await_all(lambda: all(stream.tokens for stream in streams), START_SECONDS, "a first token")
        begin, before = time.monotonic(), sum(stream.tokens for stream in streams)
        time.sleep(seconds)  # what is measured is how much happens in a given time
        return (sum(stream.tokens for stream in streams) - before) / (time.monotonic() - begin)
    finally:
        for stream in streams:
            stream.stopped.set()
        for one in beside:
            one.kill()
            one.wait()
        for stream in streams:
            stream.join(10)


def await_all(condition, seconds: float, what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"no {what} within {seconds} s")
        time.sleep(0.02)


def answers(port: str) -> bool:
    """Whether a server answers there."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=2)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/api/version")
            return connection.getresponse().status == 200
        except OSError:
            return False


def main() -> None:
    """Measure the windows one after the other."""
    wanted = json.loads(sys.argv[1])
    home = tempfile.TemporaryDirectory()
    servers = [
        subprocess.Popen(
            [wanted["program"], "serve"],
            env={**os.environ, **environment, "OLLAMA_HOST": f"127.0.0.1:{port}", "HOME": home.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for port, environment in wanted["servers"].items()
    ]
    try:
        await_all(lambda: all(map(answers, wanted["servers"])), START_SECONDS, "answer of the unbound instances")
        for name in dict.fromkeys(group for group, _ in wanted["windows"]):
            rate(wanted["groups"][name], 0, 0)  # loads what is not loaded
        rates = [rate(wanted["groups"][group], hogs, wanted["seconds"]) for group, hogs in wanted["windows"]]
        print(json.dumps(rates))
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
        home.cleanup()


main()
