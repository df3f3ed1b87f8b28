"""People and tools at work, from the workstation, until they are stopped; runs there beside sign_on.py.

Usage: people_at_work.py DOMAIN AUTHORITY RESOLVER < {"person", "password", "admin", "admin_password", "key"}. Each use
of the platform is a line of JSON on standard output: ``{"at", "use", "error"}``, the error empty where it went well.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable

import sign_on

AUTHORITY, RESOLVER = sys.argv[2:4]
SECONDS = 25
PAUSE = 1.0
DOCUMENT = "The lighthouse of Marrow Point was painted green in 1931."
QUESTION = [{"role": "user", "content": "Hello"}]
Use = Callable[[], None]


class Line:
    """A connection to one public name, kept open from use to use as tools and browsers do."""

    def __init__(self, url: str, **headers: str) -> None:
        self.host = url.removeprefix("https://")
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        self.headers = {"Content-Type": "application/json"} | given
        self.context = ssl.create_default_context(cafile=AUTHORITY)
        self.connection: http.client.HTTPSConnection | None = None

    def ask(self, path: str, body: dict | bytes | None = None, **headers: str) -> dict:
        """Return the answer's JSON. Raises ``Refused`` for a status that is no success."""
        fresh = self.connection is None
        try:
            return self._ask(path, body, headers)
        except http.client.HTTPException:
            # A kept connection that the server has closed meanwhile: every client opens another one.
            if fresh:
                raise
            return self._ask(path, body, headers)

    def _ask(self, path: str, body: dict | bytes | None, headers: dict[str, str]) -> dict:
        self.connection = self.connection or http.client.HTTPSConnection(
            self.host, timeout=SECONDS, context=self.context
        )
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            try:
                self.connection.request("POST" if data else "GET", path, data, self.headers | headers)
            except (ssl.SSLEOFError, BrokenPipeError) as err:
                # Closed before anything was asked, which TLS tells as it writes; an answer that ends early is an error.
                raise http.client.NotConnected(str(err)) from err
            reply = self.connection.getresponse()
            text = reply.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        if reply.status >= 300:
            raise Refused(f"HTTP {reply.status}: {words(text)}")
        return json.loads(text)


class Refused(Exception):
    """An answer that is an error."""


def words(text: str) -> str:
    """What an error says, of its JSON or its page."""
    try:
        found = json.loads(text)
    except ValueError:
        return text.partition("<title>")[2].partition("</title>")[0] or text[:80].strip()
    for key in ("error", "errors", "detail", "message"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return str(found)[:120]


def resolve() -> None:
    """Ask the platform's name server, and nobody else, for a name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in f"vault.{sign_on.DOMAIN}".split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
        plug.settimeout(3)
        plug.connect((RESOLVER, 53))
        plug.send(b"AB\x01\0\0\x01" + bytes(6) + labels + b"\0\0\x01\0\x01")
        answer = plug.recv(512)
    if answer[3] & 15 or not answer[7]:
        raise Refused(f"no address, code {answer[3] & 15}")


def uses(order: dict) -> dict[str, Use]:
    """What people and tools do, by name. Whoever has to sign on has done so before."""
    token = sign_on.chat_token(sign_on.Person(order["person"], order["password"]))
    vault = Line(
        sign_on.VAULT, X_Vault_Token=sign_on.vault_token(sign_on.Person(order["admin"], order["admin_password"]))
    )
    chat, papers = (Line(sign_on.CHAT, Authorization=f"Bearer {token}") for _ in range(2))
    general, coding = (Line(sign_on.API, Authorization=f"Bearer {order['key']}") for _ in range(2))
    collection = f"file-{upload(papers)}"
    short = {"messages": QUESTION, "max_tokens": 2, "stream": False}

    def sign_in() -> None:
        try:
            sign_on.access_token(sign_on.Person(order["person"], order["password"]))
        except SystemExit as err:
            raise Refused(str(err)) from err

    def found() -> None:
        query = {"collection_name": collection, "query": "Who painted it?", "k": 1}
        if "Marrow Point" not in json.dumps(papers.ask("/api/v1/retrieval/query/doc", query)):
            raise Refused("the document is not found")

    return {
        "names": resolve,
        "API, general": lambda: answered(general.ask("/v1/chat/completions", {"model": "llama-family", **short})),
        "API, coding": lambda: answered(coding.ask("/v1/chat/completions", {"model": "coder-32k", **short})),
        "chat": lambda: answered(chat.ask("/api/chat/completions", {"model": "llama-family:latest", **short})),
        "documents": found,
        "signing on": sign_in,
        "secrets": lambda: vault.ask("/v1/secret/data/ai-platform/openwebui") and None,
    }


def answered(reply: dict) -> None:
    if not reply.get("choices"):
        raise Refused(f"no answer but {json.dumps(reply)[:100]}")


def upload(papers: Line) -> str:
    """Give the chat a document; returns its id once it was read."""
    edge = "people-at-work"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="lighthouse.txt"\r\n'
    body = f"{head}Content-Type: text/plain\r\n\r\n{DOCUMENT}\r\n--{edge}--\r\n".encode()
    made = papers.ask("/api/v1/files/", body, **{"Content-Type": f"multipart/form-data; boundary={edge}"})["id"]
    for _ in range(60):
        if papers.ask(f"/api/v1/files/{made}/process/status")["status"] == "completed":
            return made
        time.sleep(1)  # the host that runs this has the standard library alone; bounded by the sixty looks
    raise SystemExit("the document was not read in a minute")


def work(name: str, use: Use) -> None:
    """Use it again and again, and say how it went."""
    while True:
        began = time.time()
        try:
            use()
            error = ""
        except Refused as err:
            error = str(err)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as err:
            error = f"{type(err).__name__}: {getattr(err, 'reason', None) or err}"
        print(
            json.dumps({"at": began, "seconds": round(time.time() - began, 2), "use": name, "error": error}), flush=True
        )
        time.sleep(PAUSE)  # a person reads before the next question


def main() -> None:
    """All uses side by side."""
    for name, use in uses(json.load(sys.stdin)).items():
        threading.Thread(target=work, args=(name, use), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
