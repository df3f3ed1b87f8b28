"""The firewall on the converged ai_server: what it restores by itself, and whom it lets through."""

from __future__ import annotations

import pytest

from lab.settings import address
from tests.lab.conftest import changed_or_failed

API = "http://host.docker.internal:{port}/api/version"
IMAGE = "lab-test-curl:1"
NETWORK = "lab-test-network"
# An image of curl and the libraries it needs: the host's own.
MAKE_IMAGE = f"""
set -e
folder=$(mktemp -d)
for file in /usr/bin/curl $(ldd /usr/bin/curl | grep -oE '/[^ ]+'); do
    mkdir -p "$folder$(dirname "$file")"
    cp -L "$file" "$folder$file"
done
tar -C "$folder" -c . | docker import - {IMAGE}
rm -r "$folder"
docker network create {NETWORK}
"""


@pytest.fixture(scope="module")
def containers(ai_server):
    """A way to ask a URL from inside a container of ai_server."""
    ai_server.run(MAKE_IMAGE)

    def ask(network: str, url: str) -> str:
        options = f"--rm --network {network} --add-host=host.docker.internal:host-gateway {IMAGE}"
        return ai_server.run(f"docker run {options} /usr/bin/curl -s -m 5 {url}", check=False).stdout

    yield ask
    ai_server.run(f"docker network rm {NETWORK}; docker image rm {IMAGE}")


@pytest.mark.parametrize("network", ["bridge", NETWORK])
@pytest.mark.parametrize("port", [11434, 11435])
def test_the_hosts_own_containers_reach_ollama(containers, network, port):
    assert '"version"' in containers(network, API.format(port=port))


def test_they_do_not_reach_vault(containers):
    assert containers("bridge", "-k https://host.docker.internal:8202/v1/sys/health") == ""


def test_rules_that_somebody_removed_come_back(master, ai_server, workstation):
    reach = f"curl -s -m 3 -o /dev/null http://{address(100)}:11434/api/version"
    ai_server.run("nft delete table inet ai_platform")
    try:
        assert workstation.run(reach, check=False).returncode == 0
    finally:
        rows = master.salt("ai_server", "state.apply", "firewall")["ai_server"]
    assert [row["__id__"] for row in changed_or_failed(rows).values()] == ["firewall-loaded"]
    assert workstation.run(reach, check=False).returncode != 0
