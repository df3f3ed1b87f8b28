"""Streaming clients on the platform's names, run on a host that may reach the instances; prints a JSON line an answer.

Usage: alias_clients.py SECONDS URL1 URL2. Eight clients, five names, one question: at temperature 0 a model gives the
same answer every time, so an answer that two models wrote is none that either gives.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request

NAMES = {
    0: ["llama-family", "gemma-family", "slot-5", "slot-5"],
    1: ["coder-128k", "coder-32k", "coder-rotate", "coder-rotate"],
}
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 6}
# A person reads between two questions.
PAUSE_SECONDS = 1.0
lock = threading.Lock()


def ask(url: str, name: str) -> dict:
    """One answer: when it began, its first piece and its end (epoch seconds), its text, and what went wrong."""
    body = {"model": name, "messages": [{"role": "user", "content": "Name a colour."}], "options": OPTIONS}
    row = {"name": name, "began": time.time(), "first": None, "text": "", "error": None, "done": False}
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/chat", data, kind)  # noqa: S310 (of the test's own making)
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


def client(url: str, name: str, until: float, stop: threading.Event) -> None:
    """Ask again and again."""
    while time.time() < until and not stop.is_set():
        row = ask(url, name)
        with lock:
            print(json.dumps(row), flush=True)
        stop.wait(PAUSE_SECONDS)


def main() -> None:
    """Run the clients until the time is over, or standard input ends."""
    until, urls, stop = time.time() + float(sys.argv[1]), sys.argv[2:], threading.Event()
    names = [(urls[place], name) for place, several in NAMES.items() for name in several]
    threads = [threading.Thread(target=client, args=(*pair, until, stop)) for pair in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
