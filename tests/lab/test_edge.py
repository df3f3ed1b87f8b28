"""The lab's proxy as a client on another host meets it: names, TLS, keys, and what no key can do."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from aiplatform.wait import until
from lab.settings import address
from tests.lab.conftest import changed_or_failed

DOMAIN = "lab.internal"
API = f"https://ollama-api.{DOMAIN}"
AUTHORITY = "/tmp/ai-platform-ca.pem"
# The whole of it, ten thousand, is tests/soak/test_hostile.py.
HOSTILE = 300
CURL = ["curl", "--silent", "--show-error", "--max-time", "60", "--cacert", AUTHORITY]


@pytest.fixture(scope="module")
def client(workstation, master):
    """The workstation, with the authority's certificate in a file."""
    pem = master.salt("nginx_proxy", "platform_ca.certificate")["nginx_proxy"]
    workstation.run(f"cat > {AUTHORITY} <<'PEM'\n{pem}PEM")
    return workstation


@pytest.fixture(scope="module")
def key(master):
    """A key that may use everything, gone afterwards."""
    yield from made(master, "lab-tests")


def made(master, name, *args):
    file = f"/run/{name}.key"
    master.run(f"rm -f {file}; salt-run api_key.revoke {name} >/dev/null", check=False)
    answer = master.runner("api_key.create", name, f"file={file}", *args)
    assert answer["retcode"] == 0
    yield master.run(f"cat {file}").stdout.strip()
    master.run(f"rm -f {file}")
    master.runner("api_key.revoke", name)


def ask(client, path, *more, key=None, host=API):
    """``(status, body)`` of a request; the key goes in by a file, so that no list of processes shows it."""
    command = " ".join([*CURL, "--config", "-", "--write-out", "'\\n%{http_code}'", *more, f"'{host}{path}'"])
    config = f'header = "Authorization: Bearer {key}"' if key else ""
    out = client.run(f"{command} <<'CONFIG'\n{config}\nCONFIG").stdout
    body, _, status = out.rpartition("\n")
    return int(status), body


def post(client, path, body, key):
    return ask(client, path, "--data", f"'{json.dumps(body)}'", key=key)


def test_names_lead_to_the_proxy_and_its_certificate_is_trusted(client, nginx_proxy):
    address = nginx_proxy.run("hostname -I").stdout.split()[0]
    for name in ("ollama-api", "vault"):
        assert client.run(f"getent ahostsv4 {name}.{DOMAIN}").stdout.split()[0] == address
    assert ask(client, "/v1/sys/health", host=f"https://vault.{DOMAIN}")[0] == 200
    without = client.run(f"curl --silent {API}/ --cacert /dev/null", check=False)
    assert without.returncode != 0
    assert client.run(f"curl --silent -o /dev/null -w '%{{redirect_url}}' http://vault.{DOMAIN}/a").stdout == (
        f"https://vault.{DOMAIN}/a"
    )


def test_a_name_that_is_not_in_the_table_is_refused(client, nginx_proxy):
    address = nginx_proxy.run("hostname -I").stdout.split()[0]
    for scheme in ("https", "http"):
        command = (
            f"curl --silent --insecure --resolve other.{DOMAIN}:443:{address} --resolve other.{DOMAIN}:80:{address}"
        )
        assert client.run(f"{command} {scheme}://other.{DOMAIN}/", check=False).returncode != 0


def test_without_a_key_nothing_and_with_one_the_models(client, key):
    assert ask(client, "/api/tags")[0] == 401
    assert ask(client, "/api/tags", key=key.upper())[0] == 401
    status, body = ask(client, "/api/tags", key=key)
    offered = {row["name"].removesuffix(":latest") for row in json.loads(body)["models"]}
    assert status == 200
    assert {"slot-1", "slot-3", "coder-128k", "llama-family"} <= offered
    assert not [name for name in offered if "/" in name]


def test_coding_and_general_names_answer_at_one_address(client, key):
    for name in ("coder-128k", "llama-family"):
        message = [{"role": "user", "content": "Hello"}]
        status, body = post(client, "/api/chat", {"model": name, "stream": False, "messages": message}, key)
        assert (status, json.loads(body)["done"]) == (200, True)
        status, body = post(client, "/v1/chat/completions", {"model": name, "max_tokens": 4, "messages": message}, key)
        assert (status, json.loads(body)["usage"]["completion_tokens"] <= 4) == (200, True)


def test_a_key_for_one_slot_and_its_end(client, master):
    keys = made(master, "lab-one-slot", "slots=3")
    own = next(keys)
    assert post(client, "/api/show", {"model": "slot-3"}, own)[0] == 200
    assert post(client, "/api/show", {"model": "slot-1"}, own)[0] == 403
    assert "lab-one-slot" in master.runner("api_key.list")["keys"]
    next(keys, None)
    until(lambda: ask(client, "/api/version", key=own)[0] == 401, 1, 0.1, "the revoked key to be refused")


def test_a_key_is_in_no_log_and_no_cache(client, key, master, nginx_proxy):
    ask(client, "/api/tags", key=key)
    places = {master: "/var/cache/salt /var/log", nginx_proxy: "/var/cache/salt /var/log /etc/nginx"}
    for host, folders in places.items():
        assert host.run(f"grep -rl {key} {folders}", check=False).stdout == ""


RUNNERS = """\
import json, pathlib
found = {}
for path in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (path / "cmdline").read_text().split("\\0")
        start = (path / "stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        continue
    if "runner" in words and "--model" in words:
        found[path.name] = [words[words.index("--model") + 1], start]
print(json.dumps(found))
"""


def runners(ai_server) -> dict:
    """Process, weights and start of every model that is loaded."""
    return ai_server.json(["python3", "-c", RUNNERS])


def test_hostile_requests_leave_every_slot_as_it_is(client, key, ai_server, master):
    script = (Path(__file__).parent / "hostile.py").read_text()
    client.run(f"cat > /tmp/hostile.py <<'SCRIPT'\n{script}SCRIPT")
    before = runners(ai_server)
    assert len(before) >= 4
    models = "slot-1,slot-2,slot-3,slot-4,coder-128k,llama-family"
    command = f"python3 /tmp/hostile.py ollama-api.{DOMAIN} {AUTHORITY} {HOSTILE} {models}"
    codes = json.loads(client.run(f"{command} <<'KEY'\n{key}\nKEY", timeout=1800).stdout)
    print("answers:", codes)
    assert sum(codes.values()) == HOSTILE
    assert set(codes) <= {"200", "400", "403", "405", "415", "429", "501"}
    assert codes["200"] > HOSTILE / 10
    assert runners(ai_server) == before
    status = master.salt("ai_server", "model_slots.status")["ai_server"]
    assert all(row["loaded"] for row in status if row["model"])


def test_a_bad_drop_in_is_refused_and_the_running_proxy_untouched(client, key, master, nginx_proxy):
    before = nginx_proxy.run("pgrep -o nginx").stdout
    nginx_proxy.run("echo 'no_such_directive on;' > /etc/nginx/conf.d/bad.conf")
    try:
        answer = master.salt("nginx_proxy", "state.apply", "nginx", check=False)["nginx_proxy"]
        failed = [row["comment"] for row in answer.values() if row["result"] is False]
        assert any("no_such_directive" in text for text in failed), failed
        assert ask(client, "/api/version", key=key)[0] == 200
        assert nginx_proxy.run("pgrep -o nginx").stdout == before
    finally:
        nginx_proxy.run("rm /etc/nginx/conf.d/bad.conf")
    answer = master.salt("nginx_proxy", "state.apply", "nginx")["nginx_proxy"]
    assert changed_or_failed(answer) == {}
    assert nginx_proxy.run("nginx -t").returncode == 0


def test_a_drop_in_is_loaded_by_the_state(client, master, nginx_proxy):
    drop_in = "/etc/nginx/conf.d/lab-drop-in.conf"
    nginx_proxy.run(f"echo 'server {{ listen 127.0.0.1:8198; return 204; }}' > {drop_in}")
    code = "curl --silent --output /dev/null --write-out '%{http_code}' http://127.0.0.1:8198/"
    try:
        answer = master.salt("nginx_proxy", "state.apply", "nginx")["nginx_proxy"]
        assert [row["__id__"] for row in changed_or_failed(answer).values()] == ["nginx-loaded"]
        assert nginx_proxy.run(code).stdout == "204"
    finally:
        nginx_proxy.run(f"rm {drop_in}")
        master.salt("nginx_proxy", "nginx.reload")
    assert nginx_proxy.run(code, check=False).returncode != 0


def served(client) -> str:
    return client.run(f"openssl s_client -connect vault.{DOMAIN}:443 </dev/null 2>/dev/null | openssl x509").stdout


def test_a_certificate_is_renewed_without_a_person(client, key, nginx_proxy, master):
    old = served(client)
    ssl.PEM_cert_to_DER_cert(old.strip())
    assert master.salt("nginx_proxy", "nginx.renew")["nginx_proxy"] == ""
    nginx_proxy.run("rm /etc/nginx/ai-platform/tls/proxy.crt")
    nginx_proxy.run("systemctl start ai-platform-certificate.service")
    assert served(client) != old
    assert ask(client, "/api/version", key=key)[0] == 200
    assert nginx_proxy.run("systemctl is-active ai-platform-certificate.timer").stdout.strip() == "active"


def test_a_killed_proxy_comes_back(client, key, nginx_proxy):
    nginx_proxy.run("pkill -9 nginx")
    until(lambda: ask_safely(client, key) == 200, 20, 0.3, "the proxy to come back")


def ask_safely(client, key) -> int:
    command = " ".join(
        [*CURL, "--config", "-", "-o", "/dev/null", "--write-out", "'%{http_code}'", f"{API}/api/version"]
    )
    return int(client.run(f"{command} <<'C'\nheader = \"Authorization: Bearer {key}\"\nC", check=False).stdout or 0)


@pytest.fixture
def stranger(client):
    """Another address of the workstation: what is counted against it is counted against no other test."""
    own = address(52)
    client.run(f"ip address replace {own}/32 dev eth0")
    yield own
    client.run(f"ip address del {own}/32 dev eth0", check=False)


def codes(client, source: str, count: int, url: str, *more: str) -> list[str]:
    """The statuses of so many requests from an address, ten at a time; they differ in a number at the URL's end."""
    command = ["curl --silent --max-time 60", f"--interface {source} --cacert {AUTHORITY}", *more]
    command += [
        "--parallel --parallel-max 10 --output /dev/null --write-out '%{http_code}\\n'",
        f"'{url}?n=[1-{count}]'",
    ]
    return client.run(" ".join(command)).stdout.split()


def test_one_address_guesses_no_further_and_still_reads_pages(client, stranger):
    guess, page = (
        f"https://idm.{DOMAIN}/realms/none/login-actions/authenticate",
        f"https://idm.{DOMAIN}/realms/ai-platform",
    )
    found = codes(client, stranger, 150, guess, "--data username=a")
    assert len(found) == 150
    # Sixty for a moment and two more each second.
    assert 1 <= found.count("429") <= 90
    assert codes(client, stranger, 1, page) == ["200"]
    assert "429" not in codes(client, address(50), 1, guess, "--data username=a")


def test_one_address_loads_pages_of_hundreds_of_files_but_does_not_flood(client, stranger):
    url = f"https://vault.{DOMAIN}/v1/sys/health"
    found = codes(client, stranger, 300, url)
    assert found == ["200"] * 300
    for _ in range(12):
        found += codes(client, stranger, 300, url)
        if "429" in found:
            break
    assert found.count("429") > 0
    assert found.count("200") >= 1000
    assert set(found) == {"200", "429"}
    assert codes(client, address(50), 1, url) == ["200"]
