"""A real NGINX on loopback with the proxy's own configuration, and stub upstreams behind it."""

from __future__ import annotations

import getpass
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import jinja2
import pytest

from aiplatform import services, settings, sites, vault_tls
from aiplatform.wait import until
from lab import packages
from tests.conftest import CHECKOUT
from tests.functional import local_server

DOMAIN = "acme.test"
KEYS = {"all": "a" * 64, "coder": "b" * 64}
WHO = {"all": None, "coder": [3, 6]}


def pillar(ports: dict[str, int], own_address: str = "127.0.0.1", **api) -> dict:
    """The defaults of the tree, with one host of each role on loopback.

    ports
        Port of each Ollama instance, and of ``vault``.
    own_address
        The proxy's address.
    api
        What differs from the defaults of ``nginx:api``.
    """
    hosts = {
        "ai_server": {"address": "127.0.0.1", "roles": ["ai_server"]},
        "nginx_proxy": {"address": "127.0.0.1", "roles": ["nginx_proxy"]},
    }
    own = {
        "platform": {"domain": DOMAIN, "hosts": hosts},
        "ollama": {"instances": {name: {"port": ports[name]} for name in ("node1", "node0")}},
        "services": {"vault": {"port": ports["vault"], "scheme": "http"}},
        "aliases": {"embed": {"model": "all-minilm:l6", "instance": "node0"}},
        "nginx": {"api": api},
    }
    merged = settings.effective(own, CHECKOUT / "salt")
    return merged | {"services": services.expand(merged), "address": own_address}


def root() -> Path:
    """Where NGINX is unpacked; skips where it is not."""
    found = packages.nginx_root()
    if not (found / "usr/sbin/nginx").exists():
        pytest.skip(f"no NGINX at {found}: run `python -m lab artifacts`, or name a folder in AI_PLATFORM_NGINX")
    return found


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class LocalNginx:
    """One process with its files in a folder of its own."""

    def __init__(self, folder: Path, ports: dict[str, int], **api) -> None:
        self.folder = folder
        self.root = root()
        self.pillar = pillar(ports, **api)
        self.https, self.http, self.status = (local_server.free_port() for _ in range(3))
        self.context = sites.context(self.pillar, "Debian") | {
            "user": getpass.getuser(),
            "etc": str(folder / "etc"),
            "modules": str(folder / "modules"),
            "config": str(folder / "nginx.conf"),
            "pid": str(folder / "nginx.pid"),
            "logs": str(folder),
            "folder": str(folder),
            "certificate": str(folder / "proxy.crt"),
            "key": str(folder / "proxy.key"),
            "authorities": [str(folder / "upstream-authority.pem")],
            "ports": {"http": self.http, "https": self.https, "status": self.status},
        }
        self.config = folder / "nginx.conf"
        self.process: subprocess.Popen | None = None

    def prepare(self) -> None:
        """What the state does on a host."""
        (self.folder / "modules").mkdir(exist_ok=True)
        modules = self.root / "usr/lib/nginx/modules"
        lines = [f"load_module {modules / name}_module.so;\n" for name in ("ndk_http", "ngx_http_lua")]
        (self.folder / "modules/lua.conf").write_text("".join(lines))
        (self.folder / "etc/conf.d").mkdir(parents=True, exist_ok=True)
        shutil.copy(self.root / "etc/nginx/mime.types", self.folder / "etc")
        kinds = [("client_body", "body"), *((f"{kind}", kind) for kind in ("proxy", "fastcgi", "scgi", "uwsgi"))]
        paths = [f"{kind}_temp_path {self.folder}/{name};\n" for kind, name in kinds]
        (self.folder / "etc/conf.d/paths.conf").write_text("".join(paths))
        link = self.folder / "lua"
        if not link.exists():
            link.symlink_to(CHECKOUT / "salt/nginx/files/lua")
        self.certify()
        self.write_keys(WHO)
        self.write("routes.json", json.dumps(sites.routes(self.pillar)))
        self.config.write_text(self.render())

    def certify(self) -> None:
        """Make an authority and a certificate for all names."""
        key, authority_key = vault_tls.new_key(), vault_tls.new_key()
        authority = vault_tls.authority(authority_key, "test")
        names = sites.names(self.pillar)
        signed = vault_tls.sign(vault_tls.request(key, names[0]), authority_key, authority, names, 5)
        files = {"proxy.crt": signed, "proxy.key": key}
        files |= dict.fromkeys(("authority.pem", "upstream-authority.pem"), authority)
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def own_lua(self) -> None:
        """Take a copy of the edge's code, to damage it."""
        (self.folder / "lua").unlink()
        shutil.copytree(CHECKOUT / "salt/nginx/files/lua", self.folder / "lua")

    def render(self, **changes) -> str:
        template = (CHECKOUT / "salt/nginx/files/nginx.conf").read_text()
        made = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 (no HTML)
        return made.from_string(template).render(self.context | changes)

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step, as Salt does."""
        draft = self.folder / f".{name}"
        draft.write_text(text)
        draft.rename(self.folder / name)

    def write_keys(self, who: dict) -> None:
        rows = {sha256(KEYS[name].encode()).hexdigest(): {"name": name, "slots": slots} for name, slots in who.items()}
        rows = {digest: {k: v for k, v in row.items() if v is not None} for digest, row in rows.items()}
        self.write("keys.json", json.dumps(rows))

    def command(self, *args: str) -> list[str]:
        return [str(self.root / "usr/sbin/nginx"), "-p", str(self.folder), "-c", str(self.config), *args]

    def run(self, *args: str) -> subprocess.CompletedProcess:
        argv = self.command("-e", str(self.folder / "start.log"), *args)
        return subprocess.run(argv, env=packages.environment(self.root), capture_output=True, text=True, check=False)

    def start(self) -> None:
        argv = self.command("-e", str(self.folder / "start.log"), "-g", "daemon off;")
        self.process = local_server.launch(argv, self.folder / "start.log", packages.environment(self.root))
        until(lambda: (self.folder / "nginx.pid").exists() and listens(self.https), 10, 0.05, "NGINX to listen")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)

    # As a client -------------------------------------------------------------------------------------------------

    def raw(self, data: bytes, host: str = "ollama-api", timeout: float = 10) -> bytes:
        """Send bytes over TLS and return all that comes back until the other side closes."""
        with self.connect(host, timeout) as connection:
            connection.sendall(data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer

    def connect(self, host: str = "ollama-api", timeout: float = 10) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.folder / "authority.pem"))
        plain = socket.create_connection(("127.0.0.1", self.https), timeout)
        return context.wrap_socket(plain, server_hostname=f"{host}.{DOMAIN}")

    def ask(self, method: str, path: str, body=None, key: str | None = "all", host: str = "ollama-api", **headers):
        """One request; a body that is no bytes is sent as JSON. Returns status, headers, body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        lines = {"Host": f"{host}.{DOMAIN}", "Connection": "close"}
        lines |= {"Authorization": f"Bearer {KEYS[key]}"} if key else {}
        lines |= {} if data is None else {"Content-Length": str(len(data))}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return parsed(self.raw(head.encode() + b"\r\n" + (data or b""), host))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an HTTP/1.1 answer."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, unchunked(rest) if "transfer-encoding" in headers else rest


def head(*lines: str) -> bytes:
    """The head of a chat, with further lines."""
    fixed = ["POST /api/chat HTTP/1.1", "Host: ollama-api.acme.test", f"Authorization: Bearer {KEYS['all']}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def unchunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


class Stub(http.server.ThreadingHTTPServer):
    """An upstream that keeps what it was asked, and answers like Ollama."""

    daemon_threads = True

    def __init__(self, names: list[str], answer: Callable | None = None) -> None:
        self.seen: list[dict] = []
        self.names = names
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def last(self) -> dict:
        return self.seen[-1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Keeps a request, then answers it."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.server.seen.append({"path": self.path, "headers": dict(self.headers.items()), "body": body})
        if self.server.answer and self.server.answer(self):
            return
        facts = {"size": 12345678901234, "families": None, "tags": []}
        rows = [{"name": f"{name}:latest"} | facts for name in self.server.names]
        if self.path == "/api/tags":
            self.reply({"models": rows})
        elif self.path == "/v1/models":
            self.reply({"object": "list", "data": [{"id": row["name"], "object": "model"} for row in rows]})
        else:
            self.reply({"response": "hello"})

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = handle_any  # noqa: N815 (names of the library)

    def reply(self, data: dict) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_args) -> None:
        """Say nothing."""
