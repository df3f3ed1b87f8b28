"""No secret of Vault stands anywhere but in Vault and in files of those who need it.

The values are read into this process by a token that lives for that moment, and go to the hosts on standard input;
what comes back, and what a failure shows, is names.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.lab.conftest import Host
from tests.lab.test_edge import made

SEARCH = (Path(__file__).parent / "search_host.py").read_text()
HOSTS = ("salt_master", "ai_server", "nginx_proxy", "coredns_host")
PLACES = ("everybody", "logs", "cache", "arguments")
# All that handles secrets. What a minion rendered last is kept: the states that handle the most of them come last.
COMMANDS = [
    "salt --out=json --static * saltutil.refresh_pillar",
    "salt --out=json --static * pillar.items",
    "salt --out=json --static * grains.items",
    "salt-run --out=json vault_server.bootstrap",
    "salt-run --out=json vault_server.status",
    "salt-run --out=json vault_oidc.configure",
    "salt-run --out=json api_key.list",
    "salt-run --out=json ai_platform.status",
    # As people see them, with the progress and the summary.
    "salt-run ai_platform.verify",
    "salt-run ai_platform.deploy phases=vault,nginx,coredns,vault_oidc",
    "salt --out=json nginx_proxy state.apply nginx",
    "salt --out=json coredns_host state.apply coredns",
    "salt --out=json ai_server state.show_sls vault,postgres,keycloak,qdrant,openwebui,openclaw",
    "salt --out=json ai_server state.apply vault,ollama",
    "salt --out=json ai_server state.apply postgres,keycloak,qdrant,openwebui,openclaw",
]
# Runs on the master: what the key store holds, and every value below the platform's path.
READ = """
import json, re, sys
from pathlib import Path
from aiplatform import vault
store = Path("/etc/salt/vault-keys")
keys = json.loads((store / "init.json").read_text())
found = {f"key share {number}": share for number, share in enumerate(keys["keys"])}
config = Path("/etc/salt/master.d/vault.conf").read_text()
found["the master's login"] = re.search(r"secret_id: *['\\"]?([0-9a-f-]{30,})", config).group(1)
with vault.root_for_a_moment(keys["url"], str(store / "ca.pem"), keys["keys"]) as client:
    kv = client.secrets.kv.v2
    def walk(path):
        for name in kv.list_secrets(path, mount_point="secret")["data"]["keys"]:
            if name.endswith("/"):
                walk(path + name)
            else:
                answer = kv.read_secret_version(path + name, mount_point="secret", raise_on_deleted_version=True)
                for key, value in answer["data"]["data"].items():
                    if key == "oidc_url":  # an address, and known to all
                        continue
                    found[f"{path}{name}:{key}"] = value
    walk("")
json.dump(found, sys.stdout)
"""


# A process that has a secret in its arguments until a file is gone, which nothing but looking again tells with the
# host's own Python; the limit is for a test that dies.
AS_LONG_AS_IT_IS_THERE = """
import pathlib, sys, time
until = time.monotonic() + 300
while pathlib.Path(sys.argv[1]).exists() and time.monotonic() < until:
    time.sleep(0.1)
"""


def feed(host: Host, argv: list[str], text: str, timeout: float = 300) -> str:
    """Run a command on a host with something on its standard input, and keep its errors short."""
    command = ["docker", "exec", "-i", host.container, *argv]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        pytest.fail(f"{host.name}: exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}", pytrace=False)
    return done.stdout


def search(host: Host, values: dict[str, str], *places: str, seconds: int = 0) -> list[list[str]]:
    """``[name, place]`` of each secret that stands in one of these places on a host."""
    order = json.dumps({"secrets": values, "places": places, "seconds": seconds})
    return json.loads(feed(host, ["python3", "-c", SEARCH], order))


def named(text: str, values: dict[str, str]) -> list[str]:
    """The names of the secrets in a text."""
    return [name for name, value in values.items() if value in text]


@pytest.fixture(scope="module")
def values(master):
    """``{name: value}`` of all that must not be seen; never shown. A tool's key is among them, made for these tests."""
    argv = ["env", "PYTHONPATH=/srv/ai-platform/_utils", "/opt/salt/bin/python", "-c", READ]
    found = json.loads(feed(master, argv, ""))
    names = {name for name in found if ":" in name}
    assert names, "there is no secret in Vault"
    assert "the master's login" in found
    for key in made(master, "lab-secrets"):
        found["a tool's key"] = key
        yield Values({name: str(value) for name, value in found.items() if len(str(value)) >= 12})


class Values(dict):
    """Secrets that show their names only, also where a test fails."""

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"


def test_the_search_finds_what_is_there(master, ai_server):
    """A value of the same kind, put into each kind of place, is found in all of them."""
    canary = secrets.token_hex(32)
    ai_server.run(f"umask 022; echo '{canary}' > /var/tmp/canary; logger -t canary {canary}")
    master.salt("ai_server", "test.echo", canary)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ai_server.run, ["python3", "-c", AS_LONG_AS_IT_IS_THERE, "/var/tmp/canary", canary])
            found = search(ai_server, {"canary": canary}, *PLACES, seconds=3)
            ai_server.run("rm /var/tmp/canary")
            running.result()
        places = {place for _, place in found}
        assert "/var/tmp/canary" in places
        assert "journal" in places
        assert "arguments of python3" in places
        assert any("/jobs/" in place for _, place in search(master, {"canary": canary}, "cache"))
    finally:
        ai_server.run("rm -f /var/tmp/canary")


@dataclass(frozen=True)
class Seen:
    """What is told of a command: not what it put out, which may hold a secret."""

    said_something: bool
    returncode: int
    secrets: list[str]


@pytest.fixture(scope="module")
def watched(master, values):
    """Runs each command once; returns what was seen of each, and of the command lines of all hosts meanwhile."""
    over = threading.Event()

    def look(host: Host) -> list[list[str]]:
        found = search(host, values, "arguments", seconds=5)
        while not over.is_set():
            found += search(host, values, "arguments", seconds=5)
        return found

    def run(command: str) -> Seen:
        done = master.run(command.split(), timeout=600, check=False)
        return Seen(bool(done.stdout), done.returncode, named(done.stdout + done.stderr, values))

    with ThreadPoolExecutor(len(HOSTS)) as pool:
        looks = [pool.submit(look, Host(name)) for name in HOSTS]
        try:
            seen = {command: run(command) for command in COMMANDS}
        finally:
            over.set()
        return seen, [hit for one in looks for hit in one.result()]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_output_shows_a_secret(watched, command):
    seen = watched[0][command]
    assert seen.said_something
    assert seen.secrets == []
    if "ai_platform.deploy" in command:  # one that is refused has no summary to search
        assert seen.returncode == 0


def test_no_command_line_holds_a_secret(watched):
    """Looked at on all hosts while all that handles secrets runs."""
    assert watched[1] == []


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("place", ["everybody", "logs", "cache"])
def test_no_host_shows_a_secret(host, place, values):
    """In no file that others can read, no log, and nothing that Salt keeps: job cache, pillar, rendered states.

    What a person asks for by ``vault.read_secret`` is kept with that job, for root to read, and is not looked at.
    """
    found = search(Host(host), values, place)
    assert found == []


def test_no_secret_is_in_git(values):
    history = subprocess.run(
        ["git", "log", "--all", "--patch", "--no-color", "--text"], cwd=CHECKOUT, capture_output=True, check=True
    ).stdout.decode(errors="replace")
    assert history
    assert named(history, values) == []


def test_what_salt_keeps_is_roots_alone(master, ai_server):
    assert master.run("stat -c '%a %U' /var/cache/salt/master").stdout.strip() == "700 root"
    assert ai_server.run("stat -c '%a %U' /var/cache/salt/minion").stdout.strip() == "700 root"


def test_the_proxys_log_has_no_query(nginx_proxy, workstation):
    """Codes and tokens of a sign-on come in it, and in the address of the page that the next one is asked from."""
    page = f"realms/{secrets.token_hex(8)}"
    url = f"https://idm.lab.internal/{page}?code=1&id_token_hint=2"
    workstation.run(f"curl --silent --insecure --output /dev/null --referer '{url}' '{url}'")
    logged = nginx_proxy.run(f"grep {page} /var/log/nginx/access.log").stdout
    assert len(logged.splitlines()) == 1
    assert "code=" not in logged
    assert "id_token_hint=" not in logged


def test_secrets_differ(values):
    """Each is generated for itself."""
    generated = [value for name, value in values.items() if ":" in name]
    assert len(generated) == len(set(generated))


def test_the_key_store_is_roots_alone(master):
    rows = master.run("stat -c '%a %U %n' /etc/salt/vault-keys /etc/salt/vault-keys/*").stdout.splitlines()
    assert rows[0] == "700 root /etc/salt/vault-keys"
    assert all(row.split()[1] == "root" for row in rows)
    assert master.run("stat -L -c '%a %U' /etc/salt/master.d/vault.conf").stdout.strip() == "600 root"
