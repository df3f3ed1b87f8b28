"""The proxy's configuration in a real NGINX: names, TLS, headers, and that a bad one changes nothing."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from _modules import nginx
from aiplatform import vault_tls
from aiplatform.wait import until
from tests.functional import local_server
from tests.functional.local_nginx import DOMAIN, LocalNginx, Stub, parsed


@pytest.fixture(scope="module")
def stub():
    server = Stub([])
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(stub, tmp_path):
    server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": stub.port})
    server.prepare()
    server.start()
    yield server
    server.stop()


def loaded(proxy) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.status}/loaded", timeout=5) as reply:
        return reply.read().decode().strip()


def reload(proxy) -> None:
    os.kill(int((proxy.folder / "nginx.pid").read_text()), signal.SIGHUP)


def plain(proxy, host: str) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.http), 5) as connection:
        connection.sendall(f"GET /a?b=c HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return connection.recv(65536)


def context(proxy, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(proxy.folder / "authority.pem"))
    if version:
        made.minimum_version = made.maximum_version = version
        made.set_ciphers("DEFAULT@SECLEVEL=0")
    return made


def handshake(proxy, made: ssl.SSLContext, name: str) -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", proxy.https), 5)
    with made.wrap_socket(connection, server_hostname=name) as wrapped:
        return wrapped.version(), wrapped.selected_alpn_protocol(), wrapped.getpeercert(binary_form=True)


def test_a_name_that_is_not_in_the_table_gets_nothing(proxy, stub):
    with pytest.raises(ssl.SSLError):
        handshake(proxy, context(proxy), f"other.{DOMAIN}")
    assert plain(proxy, f"other.{DOMAIN}") == b""
    assert proxy.ask("GET", "/", host="vault", Host="other.example")[0] in (400, 421, 444) or not stub.seen


def test_plain_http_is_sent_on_to_tls(proxy):
    status, headers, _ = parsed(plain(proxy, f"vault.{DOMAIN}"))
    assert (status, headers["location"]) == (301, f"https://vault.{DOMAIN}/a?b=c")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused_and_http2_is_spoken(proxy):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError):
            handshake(proxy, context(proxy, version), f"vault.{DOMAIN}")
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        made = context(proxy, version)
        made.set_alpn_protocols(["h2", "http/1.1"])
        assert handshake(proxy, made, f"vault.{DOMAIN}")[1] == "h2"


def test_a_service_learns_who_asked_for_what(proxy, stub):
    status, headers, _ = proxy.ask("GET", "/v1/sys/health?a=b", host="vault", X_Forwarded_For="192.0.2.66")
    assert status == 200
    assert "max-age=" in headers["strict-transport-security"]
    seen = stub.last()
    assert seen["path"] == "/v1/sys/health?a=b"
    wanted = {
        "Host": f"vault.{DOMAIN}",
        "X-Real-IP": "127.0.0.1",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": f"vault.{DOMAIN}",
        "X-Forwarded-Port": "443",
    }
    assert wanted.items() <= seen["headers"].items()


def test_a_service_that_is_down_is_told_in_words(tmp_path, stub):
    server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": local_server.free_port()})
    server.prepare()
    server.start()
    try:
        status, headers, body = server.ask("GET", "/", host="vault")
    finally:
        server.stop()
    assert (status, headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert f"<title>vault.{DOMAIN} does not answer</title>".encode() in body
    assert "strict-transport-security" in headers


def test_a_host_that_hangs_is_told_in_words_and_soon(tmp_path, stub):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        port = silent.getsockname()[1]
        server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": port})
        server.prepare()
        server.start()
        try:
            # It takes this one and no other, as a host does whose packets get lost.
            with socket.create_connection(("127.0.0.1", port)):
                answer = server.raw(f"GET / HTTP/1.0\r\nHost: vault.{DOMAIN}\r\n\r\n".encode(), "vault", timeout=20)
        finally:
            server.stop()
    status, headers, body = parsed(answer)
    assert (status, headers["content-type"]) == (504, "text/html; charset=utf-8")
    assert f"<title>vault.{DOMAIN} does not answer</title>".encode() in body


def signed_stub(folder) -> tuple[Stub, str]:
    """A service that speaks TLS under Vault's public name, and the certificate of its authority."""
    key, authority_key = vault_tls.new_key(), vault_tls.new_key()
    authority = vault_tls.authority(authority_key, "upstream")
    name = f"vault.{DOMAIN}"
    own = folder / "stub.pem"
    own.write_text(key + vault_tls.sign(vault_tls.request(key, name), authority_key, authority, [name], 5))
    made, secured = Stub([]), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(own)
    made.socket = secured.wrap_socket(made.socket, server_side=True)
    return made, authority


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_service_with_tls_has_to_show_a_certificate_of_its_authority(tmp_path, stub, elsewhere):
    secured, authority = signed_stub(tmp_path)
    server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": secured.port})
    (site,) = (site for site in server.context["sites"] if site["upstream"] == "vault")
    site |= {"scheme": "https", "authority": str(tmp_path / "wiki.pem") if elsewhere else None}
    trusted = "wiki.pem" if elsewhere else "upstream-authority.pem"
    server.prepare()
    server.write(trusted, vault_tls.authority(vault_tls.new_key(), "another"))
    server.start()
    try:
        assert server.ask("GET", "/", host="vault")[0] == 502
        server.write(trusted, authority)
        reload(server)
        until(lambda: server.ask("GET", "/", host="vault")[0] == 200, 10, 0.1, "the right authority to be taken")
    finally:
        server.stop()
        secured.shutdown()
        secured.server_close()


@pytest.mark.parametrize(("address", "answers"), [("127.0.0.1", False), ("::1", True)])
def test_a_proxy_with_an_address_of_ipv6_is_reached_there_too(tmp_path, stub, address, answers):
    server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": stub.port}, own_address=address)
    server.prepare()
    server.start()
    try:
        assert server.ask("GET", "/", host="vault")[0] == 200
        for port in (server.http, server.https):
            with socket.socket(socket.AF_INET6) as probe:
                assert (probe.connect_ex(("::1", port)) == 0) is answers
    finally:
        server.stop()


def test_a_websocket_is_let_through(proxy, stub):
    proxy.ask("GET", "/ws/socket.io/", host="vault", Connection="Upgrade, close", Upgrade="websocket")
    assert {"Upgrade": "websocket", "Connection": "upgrade"}.items() <= stub.last()["headers"].items()
    proxy.ask("GET", "/", host="vault")
    assert "Upgrade" not in stub.last()["headers"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("nginx.conf", "http { bad_directive on; }"),
        ("lua/edge.lua", "this is no Lua"),
        ("proxy.crt", "no certificate"),
    ],
)
def test_a_bad_configuration_leaves_the_running_one_untouched(proxy, file, damage):
    before, serial = loaded(proxy), handshake(proxy, context(proxy), f"vault.{DOMAIN}")[2]
    if file.startswith("lua/"):
        proxy.own_lua()
    (proxy.folder / file).write_text(damage)
    # NGINX loads Lua when it is to use it, not when it tests.
    assert bool(proxy.run("-t").returncode) is not file.startswith("lua/")
    reload(proxy)
    until(lambda: "[emerg]" in logs(proxy) or "[error]" in logs(proxy), 5, 0.1, "NGINX to refuse it")
    assert loaded(proxy) == before
    assert proxy.ask("GET", "/", host="vault")[0] == 200
    assert handshake(proxy, context(proxy), f"vault.{DOMAIN}")[2] == serial


def logs(proxy) -> str:
    return "".join(path.read_text() for path in proxy.folder.glob("*.log"))


def test_a_new_certificate_is_served_after_a_reload_and_what_is_loaded_is_told(proxy):
    before, old = loaded(proxy), handshake(proxy, context(proxy), f"vault.{DOMAIN}")[2]
    proxy.certify()
    assert loaded(proxy) == before
    reload(proxy)
    until(lambda: loaded(proxy) != before, 5, 0.1, "the new certificate to be loaded")
    assert handshake(proxy, context(proxy), f"vault.{DOMAIN}")[2] != old
    assert vault_tls.days_left((proxy.folder / "proxy.crt").read_text()) > 4


def test_the_state_and_nginx_tell_the_same_files(proxy, monkeypatch):
    """Drop-ins in NGINX's own order, hidden ones left out; and the authority that Vault's certificate is checked by."""
    own = {"certificate": {"mode": "files", "certificate": str(proxy.folder / "proxy.crt"), "key": None}}
    monkeypatch.setattr(nginx, "__pillar__", proxy.pillar | {"nginx": proxy.pillar["nginx"] | own}, raising=False)
    monkeypatch.setattr(nginx, "CONFIG", proxy.config)
    monkeypatch.setattr(nginx, "LUA", proxy.folder / "lua")
    monkeypatch.setattr(nginx.sites, "ETC", str(proxy.folder / "etc"))
    monkeypatch.setattr(nginx.sites, "FOLDER", str(proxy.folder))
    assert loaded(proxy) == nginx.wanted()
    drop_ins = proxy.folder / "etc/conf.d"
    changes = {
        drop_ins / "b.conf": "# b\n",
        drop_ins / "Z.conf": "# Z\n",
        drop_ins / ".hidden.conf": "no directive",
        drop_ins / "a.conf.save": "no directive",
        proxy.folder / "upstream-authority.pem": (proxy.folder / "proxy.crt").read_text(),
    }
    for path, text in changes.items():
        before = loaded(proxy)
        path.write_text(text)
        counts = path.suffix != ".save" and not path.name.startswith(".")
        assert (nginx.wanted() != before) is counts
        reload(proxy)
        until(lambda: loaded(proxy) == nginx.wanted(), 5, 0.05, f"{path.name} to be loaded")


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(stub, tmp_path):
    """A proxy whose sites take little; ``start(**settings)`` says what differs."""
    server = LocalNginx(tmp_path, {"node1": stub.port, "node0": stub.port, "vault": stub.port})

    def start(**own):
        for site in server.context["sites"]:
            site |= own
        server.prepare()
        server.start()
        return server

    yield start
    server.stop()


def answers(proxy, count: int, path: str = "/", method: str = "GET", source: str = "127.0.0.1") -> list[int]:
    """The statuses of requests from an address, one after the other on one connection."""
    found = []
    plain = socket.create_connection(("127.0.0.1", proxy.https), 10, source_address=(source, 0))
    name = f"vault.{DOMAIN}"
    with context(proxy).wrap_socket(plain, server_hostname=name) as connection:
        connection_to = http.client.HTTPConnection(name)
        connection_to.sock = connection
        for _ in range(count):
            connection_to.request(method, path)
            reply = connection_to.getresponse()
            found.append(reply.status)
            body = reply.read()
            assert (b"Too many requests" in body) is (reply.status == 429)
    return found


def test_by_default_a_page_of_hundreds_of_files_and_a_script_that_signs_in_pass(limited):
    proxy = limited()
    assert set(answers(proxy, 600)) == {200}
    assert set(answers(proxy, 30, "/v1/auth/userpass/login/a", "POST")) == {200}


def test_an_address_that_asks_too_much_is_refused_and_others_are_not(limited, stub):
    proxy = limited(requests_per_second=1, burst=20)
    before = len(stub.seen)
    found = answers(proxy, 60)
    assert set(found[:21]) == {200}
    assert found.count(429) >= 30
    assert len(stub.seen) - before == found.count(200)
    assert answers(proxy, 5, source="127.0.0.2") == [200] * 5
    until(lambda: answers(proxy, 1) == [200], 10, 0.5, "the address to be served again")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_guesses_are_refused_while_pages_are_served(limited, method):
    proxy = limited(sign_ins_per_minute=1, sign_in_burst=5)
    found = answers(proxy, 20, "/v1/auth/userpass/login/a", method)
    assert found == [200] * 6 + [429] * 14
    # However it is written.
    assert set(answers(proxy, 1, "/v1//auth/./userpass/login/b", method)) == {429}
    assert set(answers(proxy, 1, "/v1/%61uth/userpass/login/b", method)) == {429}
    assert set(answers(proxy, 30, "/v1/auth/userpass/login/a")) == {200}
    assert set(answers(proxy, 30, "/v1/secret/data/a", method)) == {200}
    assert answers(proxy, 1, "/v1/auth/userpass/login/a", method, source="127.0.0.2") == [200]


def test_a_site_where_everything_sent_may_be_a_guess(limited):
    proxy = limited(sign_in="/", sign_ins_per_minute=1, sign_in_burst=5)
    assert answers(proxy, 20, "/realms;a=b/x/login-actions/authenticate", "POST").count(429) == 14
    assert set(answers(proxy, 30)) == {200}


def test_requests_at_the_same_time_are_bounded_for_each_address(tmp_path):
    held = threading.Event()
    slow = Stub([], answer=lambda _handler: held.wait(10) and False)
    server = LocalNginx(tmp_path, dict.fromkeys(("node1", "node0", "vault"), slow.port))
    for site in server.context["sites"]:
        site["connections"] = 4
    server.prepare()
    server.start()
    try:
        with ThreadPoolExecutor(12) as pool:
            asked = [pool.submit(answers, server, 1) for _ in range(12)]
            until(lambda: sum(one.done() for one in asked) == 8, 10, 0.05, "those beyond the limit to be refused")
            other = pool.submit(answers, server, 1, source="127.0.0.2")
            until(lambda: len(slow.seen) == 5, 10, 0.05, "another address to be served")
            held.set()
            found = sorted(one.result()[0] for one in asked)
        assert found == [200] * 4 + [429] * 8
        assert other.result() == [200]
    finally:
        held.set()
        server.stop()
        slow.shutdown()
        slow.server_close()
