"""Who gets what: every service of the table of services for everybody who might try, in one table.

closed        no connection to the service's own port
open          a connection; nobody is asked who they are
401, 403      its answer to what they have to show
refused       they prove who they are, and are not let in
own           it answers, and gives them what is theirs only
user, admin   the chat with that role; ``secrets``: Vault's
/             what the service's own port gives, then what its public name gives
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.test_browser import passwords
from tests.lab.test_edge import AUTHORITY, DOMAIN, client

__all__ = ["client", "passwords"]

# Outside, and people: from the workstation. Other minion: one that has no business with the service.
TABLE = """
service      | outside      | wrong key | no role | ai-user | ai-admin | other minion
vault        | closed / 403 | 403       | refused | refused | secrets  | own
ollama-node1 | closed / 401 | 401       | 401     | 401     | 401      | closed
ollama-node0 | closed / 401 | 401       | 401     | 401     | 401      | closed
keycloak     | closed / 401 | 401       | 403     | 403     | 403      | closed
openwebui    | closed / 401 | 401       | refused | user    | admin    | closed
qdrant       | closed       | 401       | closed  | closed  | closed   | closed
postgres     | closed       | refused   | closed  | closed  | closed   | closed
https        | open         | open      | open    | open    | open     | open
http         | open         | open      | open    | open    | open     | open
dns          | open         | open      | open    | open    | open     | open
dns-tcp      | open         | open      | open    | open    | open     | open
"""
HEAD, *LINES = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
EXPECTED = {line[0]: dict(zip(HEAD[1:], line[1:], strict=True)) for line in LINES}
PEOPLE = {"no role": "lab-nobody", "ai-user": "lab-user", "ai-admin": "lab-admin"}
# What somebody asks for at the public name, and how a key is shown there.
ASKED = {
    "vault": ("vault", "/v1/secret/data/ai-platform/openwebui", "X-Vault-Token: {}"),
    "ollama": ("ollama-api", "/api/tags", "Authorization: Bearer {}"),
    "keycloak": ("idm", "/admin/realms/ai-platform/users", "Authorization: Bearer {}"),
    "openwebui": ("ollama-ui", "/api/models", "Authorization: Bearer {}"),
}
WRONG = "wrong-but-well-formed-0123456789"
CODE = "curl --silent --output /dev/null --max-time 20 --write-out '%{http_code}'"
OTHERS_SECRET = "secret/ai-platform/openwebui"


@pytest.fixture(scope="module")
def services(master) -> dict[str, dict]:
    """The table of services as the hosts have it, ports filled in, and the address of each."""
    pillar = master.salt("ai_server", "pillar.items", "unmask=True")["ai_server"]
    hosts = pillar["platform"]["hosts"].values()
    place = {role: host["address"] for host in hosts for role in host["roles"]}
    return {name: row | {"address": place[row["role"]]} for name, row in pillar["services"].items()}


@pytest.fixture(scope="module")
def people(client, passwords) -> dict[str, dict[str, str]]:
    """What each person got, by name and service."""
    script = Path(__file__).with_name("sign_on.py").read_text()
    client.run(f"cat > /tmp/sign_on.py <<'SCRIPT'\n{script}SCRIPT")
    order = json.dumps(passwords)
    return client.json(f"python3 /tmp/sign_on.py {DOMAIN} {AUTHORITY} <<'PEOPLE'\n{order}\nPEOPLE")


def port(host, row) -> str:
    """Whether a host is let through to a service's own port."""
    if row["scheme"] == "udp":
        query = f"python3 -c '{QUERY}' {row['address']} {row['port']} idm.{DOMAIN}"
        return "open" if host.run(query, check=False).returncode == 0 else "closed"
    done = host.run(f"timeout 3 bash -c '</dev/tcp/{row['address']}/{row['port']}'", check=False)
    return "open" if done.returncode == 0 else "closed"


QUERY = """
import socket, sys
address, port, name = sys.argv[1:]
labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
plug.settimeout(3)
plug.sendto(b"AB\\x01\\0\\0\\x01" + bytes(6) + labels + b"\\0\\0\\x01\\0\\x01", (address, int(port)))
sys.exit(plug.recv(512)[:2] != b"AB")
"""


def public(client, name: str, key: str = "") -> str:
    """The status at a service's public name."""
    label, path, header = ASKED[name.partition("-")[0]]
    with_key = f"--header '{header.format(key)}'" if key else ""
    return client.run(f"{CODE} --cacert {AUTHORITY} {with_key} https://{label}.{DOMAIN}{path}").stdout


def outside(client, name, row) -> str:
    found = port(client, row)
    return f"{found} / {public(client, name)}" if row.get("name") else found


def wrong_key(client, master, ai_server, name, row) -> str:
    """A key that is none, shown where the service can be reached at all."""
    if row.get("name"):
        return public(client, name, WRONG)
    if name == "qdrant":
        return master.run(
            f"{CODE} --header 'api-key: {WRONG}' http://{row['address']}:{row['port']}/collections"
        ).stdout
    if name == "postgres":
        # Its own container is in the network of its clients.
        psql = "psql --host=postgres --username=keycloak --dbname=keycloak --command='select 1'"
        said = ai_server.run(f"docker exec -e PGPASSWORD={WRONG} postgres {psql}", check=False).stderr
        return "refused" if "password authentication failed" in said else said
    return port(client, row)


def other_minion(coredns_host, nginx_proxy, name, row) -> str:
    found = port(nginx_proxy if row["role"] == "coredns_host" else coredns_host, row)
    if name != "vault":
        return found
    # With its own login: it reads nobody else's secrets.
    read = coredns_host.run(f"salt-call --out=json vault.read_secret {OTHERS_SECRET}", check=False)
    return "own" if found == "open" and "permission denied" in read.stdout + read.stderr else found


def person(people, client, who, name, row) -> str:
    if not row.get("name"):
        return port(client, row)
    return people[PEOPLE[who]]["api" if name.startswith("ollama") else name]


def test_the_table_has_every_service(services):
    assert set(EXPECTED) == set(services)


@pytest.mark.parametrize("name", EXPECTED)
def test_everybody_gets_what_the_table_says(
    name, services, people, client, master, ai_server, coredns_host, nginx_proxy
):
    row = services[name]
    found = {
        "outside": outside(client, name, row),
        "wrong key": wrong_key(client, master, ai_server, name, row),
        **{who: person(people, client, who, name, row) for who in PEOPLE},
        "other minion": other_minion(coredns_host, nginx_proxy, name, row),
    }
    assert found == EXPECTED[name]
