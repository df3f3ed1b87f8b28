"""Streaming clients on the platform's names, run on a client's host; prints a JSON line an answer.

Usage: SSL_CERT_FILE=CA alias_clients.py SECONDS URL < KEY. Eight clients, six names, one question: at temperature 0 a
model gives the same answer every time, so an answer that two models wrote is none that either gives.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request

NAMES = ("llama-family", "gemma-family", "slot-5", "slot-5", "coder-128k", "coder-32k", "coder-rotate", "coder-rotate")
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 6}
# A person reads between two questions.
PAUSE_SECONDS = 1.0
lock = threading.Lock()


def ask(url: str, key: str, name: str) -> dict:
    """One answer: when it began, its first piece and its end (epoch seconds), its text, and what went wrong."""
    body = {"model": name, "messages": [{"role": "user", "content": "Name a colour."}], "options": OPTIONS}
    row = {"name": name, "began": time.time(), "first": None, "text": "", "error": None, "done": False}
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/api/chat", data, headers)  # noqa: S310 (of the test's own making)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            for line in reply:
                piece = json.loads(line)
                row["first"] = row["first"] or time.time()
                row["text"] += piece.get("message", {}).get("content", "")
                row["error"] = piece.get("error", row["error"])
                row["done"] = bool(piece.get("done"))
    except (OSError, ValueError) as err:
        row["error"] = repr(err)
    return row | {"ended": time.time()}


def client(url: str, key: str, name: str, until: float, stop: threading.Event) -> None:
    """Ask again and again."""
    while time.time() < until and not stop.is_set():
        row = ask(url, key, name)
        with lock:
            print(json.dumps(row), flush=True)
        stop.wait(PAUSE_SECONDS)


def main() -> None:
    """Run the clients until the time is over, or standard input, whose first line is the key, ends."""
    until, url, stop = time.time() + float(sys.argv[1]), sys.argv[2], threading.Event()
    key = sys.stdin.readline().strip()
    threads = [threading.Thread(target=client, args=(url, key, name, until, stop)) for name in NAMES]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
