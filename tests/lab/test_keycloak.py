"""PostgreSQL and Keycloak on the converged ai_server: confined, left alone by a second run, closed to guesses."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from lab.settings import address
from tests.lab.conftest import changed_or_failed

CONTAINERS = ("postgres", "keycloak")
CONFINED = ("postgres", "keycloak", "qdrant", "openwebui", "coredns")
FILES = "/etc/ai-platform-containers"
APPLY = ["salt-call", "--out=json", "state.apply"]
# Runs on ai_server as root: a user and a client of the test's own, by which it signs in without a browser.
SIGN_IN = """
import json, shlex, sys
from pathlib import Path
import requests
from keycloak import KeycloakAdmin
lines = Path("/etc/ai-platform-containers/keycloak/secrets.env").read_text().splitlines()
known = {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines)}
base, realm, user, client = "http://127.0.0.1:8180", "ai-platform", "lab-guess", "lab-direct"
password = known["KC_BOOTSTRAP_ADMIN_PASSWORD"]
admin = KeycloakAdmin(server_url=base, username="admin", password=password, user_realm_name="master")
admin.change_current_realm(realm)
def clear():
    made = [(admin.get_user_id(user), admin.delete_user), (admin.get_client_id(client), admin.delete_client)]
    for found, delete in made:
        if found:
            delete(found)
def sign_in(password):
    form = {"grant_type": "password", "client_id": client, "username": user, "password": password}
    return requests.post(f"{base}/realms/{realm}/protocol/openid-connect/token", data=form, timeout=30).status_code
clear()
try:
    admin.create_client({"clientId": client, "publicClient": True, "directAccessGrantsEnabled": True})
    details = {"email": f"{user}@lab.internal", "firstName": "Lab", "lastName": "Guess", "enabled": True}
    credential = {"type": "password", "value": "right-Password-22", "temporary": False}
    admin.create_user({"username": user, "credentials": [credential], **details})
    found = {"right": sign_in("right-Password-22"), "wrong": [sign_in("wrong"), sign_in("wrong")]}
    found["right again"] = sign_in("right-Password-22")
    found["locked"] = admin.get_bruteforce_detection_status(admin.get_user_id(user))["disabled"]
    json.dump(found, sys.stdout)
finally:
    clear()
"""


@pytest.fixture(scope="module")
def shown(ai_server):
    """The containers as Docker shows them."""
    listed = ai_server.json(["docker", "inspect", *CONTAINERS])
    return dict(zip(CONTAINERS, listed, strict=True))


@pytest.mark.parametrize("name", CONFINED)
def test_a_container_is_confined(ai_server, coredns_host, name):
    where = coredns_host if name == "coredns" else ai_server
    [found] = where.json(["docker", "inspect", name])
    host, config = found["HostConfig"], found["Config"]
    user = config["User"].split(":")[0]
    assert user not in ("", "0", "root")
    assert where.run(f"getent passwd {user}", check=False).returncode == 2, "a user of the host has this number"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    # The one that its image's program has, see tests/lab/test_names.py.
    needed = ["NET_BIND_SERVICE"] if name == "coredns" else []
    assert [added.removeprefix("CAP_") for added in host["CapAdd"] or []] == needed
    assert not host["Privileged"]
    assert "no-new-privileges" in host["SecurityOpt"][0]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"]["max-size"]
    assert "@sha256:" in config["Image"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_docker_shows_no_secret(ai_server, shown, name):
    text = ai_server.run(f"cat {FILES}/keycloak/secrets.env").stdout
    values = [line.partition("=")[2].strip("'") for line in text.splitlines() if "USERNAME" not in line]
    assert len(values) == 2
    # Not in a comparison of the whole texts, which a failure would show.
    assert not [True for value in values if value in json.dumps(shown[name])]


def test_the_files_of_secrets_are_closed(ai_server):
    found = ai_server.run(f"stat -c '%a %u' {FILES} {FILES}/keycloak/secrets.env").stdout.split("\n")
    assert found[:2] == ["700 0", "400 21002"]


def test_nobody_else_owns_what_the_vector_store_keeps(ai_server):
    """An earlier platform's data, of user 1000, is carried over; where all is right nothing is stopped or changed."""
    data, started = "/mnt/ai_data/qdrant", "docker inspect --format '{{.State.StartedAt}}' qdrant"
    owners = f"find {data} -printf '%U:%G\\n' | sort -u"
    before = ai_server.run(started).stdout
    ai_server.run(f"chown -R 1000:1000 {data}")
    states = changed_or_failed(ai_server.json([*APPLY, "qdrant"], timeout=600)["local"])
    assert {row["__id__"]: row["result"] for row in states.values()} == {"qdrant-data": True, "qdrant": True}
    assert ai_server.run(owners).stdout.split() == ["21004:21004"]
    again = ai_server.run(started).stdout
    assert again != before
    assert changed_or_failed(ai_server.json([*APPLY, "qdrant"], timeout=600)["local"]) == {}
    assert ai_server.run(started).stdout == again


def test_a_second_run_changes_nothing_and_restarts_nothing(ai_server):
    started = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' " + " ".join(CONTAINERS)
    before = ai_server.run(started).stdout
    states = ai_server.json([*APPLY, "postgres,keycloak"], timeout=600)["local"]
    assert changed_or_failed(states) == {}
    assert ai_server.run(started).stdout == before


def test_a_container_removed_by_hand_comes_back_with_its_data(ai_server):
    ai_server.run("docker rm --force keycloak")
    states = ai_server.json([*APPLY, "keycloak"], timeout=600)["local"]
    # The realm, its roles and users are in the database: only the container is made.
    assert [row["__id__"] for row in changed_or_failed(states).values()] == ["keycloak"]


@pytest.mark.parametrize(
    ("more", "user", "realm"), [([], "ai-platform-admin", "ai-platform"), (["console=True"], "admin", "master")]
)
def test_an_operator_gets_the_first_password(master, ai_server, more, user, realm):
    """By the command that the summary names; in Keycloak it is the right one."""
    file = "/run/lab-first-password"
    master.run(f"rm -f {file}")
    try:
        assert master.runner("keycloak.first_password", f"file={file}", *more) == {
            "retcode": 0,
            "user": user,
            "file": file,
        }
        assert master.run(f"stat -c '%a %U' {file}").stdout.strip() == "600 root"
        password = master.run(f"cat {file}").stdout.strip()
    finally:
        master.run(f"rm -f {file}")
    form = f"grant_type=password&client_id=admin-cli&username={user}&password={quote(password, safe='')}"
    url = f"http://127.0.0.1:8180/realms/{realm}/protocol/openid-connect/token"
    reply = ai_server.json(f"curl -s --data @- {url} <<'FORM'\n{form}\nFORM")
    # Of one who has to change it Keycloak says that it fits, and gives no token.
    assert "access_token" in reply or reply["error_description"] == "Account is not fully set up"


def test_guesses_are_refused_and_lock_the_right_password_out(ai_server):
    found = json.loads(ai_server.run(["/opt/salt/bin/python", "-W", "ignore", "-c", SIGN_IN]).stdout)
    assert found == {"right": 200, "wrong": [401, 401], "right again": 401, "locked": True}


@pytest.mark.parametrize("port", [5432, 8180])
def test_nobody_from_outside_reaches_them(workstation, port):
    reply = workstation.run(f"timeout 3 bash -c '</dev/tcp/{address(100)}/{port}'", check=False)
    assert reply.returncode != 0


def test_a_neighbour_does_not_reach_a_container_by_its_own_address(workstation, shown):
    inside = shown["keycloak"]["NetworkSettings"]["Networks"]["ai-platform"]["IPAddress"]
    route = f"ip route replace {inside}/32 via {address(100)}"
    reply = workstation.run(f"{route} && timeout 3 bash -c '</dev/tcp/{inside}/8080'", check=False)
    workstation.run(f"ip route del {inside}/32", check=False)
    assert reply.returncode != 0


def test_the_proxy_reaches_keycloak(nginx_proxy):
    url = f"http://{address(100)}:8180/realms/ai-platform/.well-known/openid-configuration"
    assert nginx_proxy.json(["curl", "-s", "-m", "10", url])["issuer"] == "https://idm.lab.internal/realms/ai-platform"


def test_the_address_of_the_realm_is_in_vault(master):
    found = master.salt("ai_server", "vault.read_secret", "secret/ai-platform/keycloak", "oidc_url")["ai_server"]
    assert found == "https://idm.lab.internal/realms/ai-platform/.well-known/openid-configuration"


def test_the_checks_pass(master):
    rows = master.salt("ai_server", "verify.run", "only=[keycloak, postgres]")["ai_server"]
    assert len(rows) >= 6
    assert [row for row in rows if not row["ok"]] == []
