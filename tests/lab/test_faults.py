"""What goes wrong on real servers: it is named, nothing is half done, and the platform comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiplatform.wait import until
from tests.conftest import CHECKOUT
from tests.lab.conftest import changed_or_failed

SMALL = "/mnt/small"
SMALL_URL = "http://127.0.0.1:11999"
# The site's registry, and a second one over the same files: it dies alone, while others pull from the first one.
REGISTRY, SECOND = "10.89.77.10:5000", "10.89.77.10:5001"
PULL = f"""
import sys
sys.path.insert(0, "/var/cache/salt/minion/extmods/utils")
from aiplatform.ollama import Client
there = None
for event in Client("{SMALL_URL}").pull(sys.argv[1] + "/library/gemma3-270m:f16", insecure=True):
    if event.get("total", 0) > 1e6 and there is None:
        there = event.get("completed", 0)
print(there, "pulled")
"""


def slots_loaded(master):
    answer = master.runner("ai_platform.status", check=False)
    return answer["retcode"] == 0


def test_a_wrong_hash_is_refused_and_the_running_version_stays(master, ai_server):
    before = ai_server.run("readlink /opt/ollama/current; systemctl show -p MainPID ollama ollama-node0").stdout
    pillar = {"ollama": {"version": "0.17.5", "hashes": {"0.17.5": {"amd64": "0" * 64}}}}
    published = master.json("grep -v '^#' /srv/pillar/artifacts.sls")["ollama"]
    pillar["ollama"]["source"] = published["source"].replace("{version}", published["version"])
    rows = master.salt("ai_server", "state.apply", "ollama", f"pillar={json.dumps(pillar)}", check=False)["ai_server"]
    failed = {key: row["comment"] for key, row in rows.items() if row["result"] is False}
    assert any("0" * 64 in comment for comment in failed.values()), failed
    after = ai_server.run("readlink /opt/ollama/current; systemctl show -p MainPID ollama ollama-node0").stdout
    assert after == before
    assert ai_server.run("ls -d /opt/ollama/0.17.5", check=False).returncode != 0


@pytest.fixture
def small_ollama(ai_server):
    """A second Ollama on ai_server, on loopback, with a store of its own in memory: what breaks there breaks there."""
    ai_server.run(f"mkdir -p {SMALL} && mount -t tmpfs -o size=20m tmpfs {SMALL} && install -d -o ollama {SMALL}/store")
    settings = (
        f"-E HOME={SMALL}/store -E OLLAMA_MODELS={SMALL}/store -E OLLAMA_NOPRUNE=1 -E OLLAMA_HOST={SMALL_URL[7:]}"
    )
    try:
        ai_server.run(f"systemd-run -q --unit=small-ollama -p User=ollama {settings} /usr/local/bin/ollama serve")
        answers = f"curl -sf {SMALL_URL}/api/version"
        until(lambda: ai_server.run(answers, check=False).returncode == 0, 30, 0.2, "the small Ollama")
        yield ai_server
    finally:
        ai_server.run(f"systemctl stop small-ollama; umount {SMALL} && rmdir {SMALL}", check=False)


def pull(host, registry=REGISTRY, check=True):
    """Pull with the platform's own client; prints the bytes already there at first, then the outcome."""
    return host.run(["/opt/salt/bin/python", "-c", PULL, registry], timeout=200, check=check)


def test_a_full_disk_is_named_and_later_the_same_pull_works(small_ollama):
    assert "no space left on device" in pull(small_ollama, check=False).stderr
    small_ollama.run(f"mount -o remount,size=1g {SMALL}")
    assert pull(small_ollama).stdout.endswith("pulled\n")


def start_second_registry(master):
    settings = "-E OTEL_TRACES_EXPORTER=none -E REGISTRY_HTTP_ADDR=:5001"
    master.run(
        f"systemd-run -q --collect --unit=second-registry {settings} docker-registry serve /etc/lab/registry.yml"
    )
    up = f"curl -sf http://{SECOND}/v2/"
    until(lambda: master.run(up, check=False).returncode == 0, 30, 0.2, "the second registry")


def test_a_registry_that_dies_in_mid_pull_and_comes_back(master, small_ollama):
    small_ollama.run(f"mount -o remount,size=1g {SMALL}")
    start_second_registry(master)
    # Slow enough to die in the middle: 543 MB at 40 MB/s.
    slow = "add table ip lab_slow; add chain ip lab_slow out { type filter hook output priority 0; };"
    slow += " add rule ip lab_slow out tcp sport 5001 limit rate over 40 mbytes/second drop"
    master.run(["nft", slow])
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(pull, small_ollama, SECOND, check=False)
            grown = f"find {SMALL}/store/blobs -name '*-partial*' -size +1M"
            until(lambda: small_ollama.run(grown, check=False).stdout, 60, 0.1, "part of the model")
            master.run("systemctl kill --signal=KILL second-registry; systemctl stop second-registry", check=False)
            died = first.result()
        assert died.returncode != 0
        assert SECOND in died.stderr, "the registry that died is named"
        start_second_registry(master)
        master.run("nft delete table ip lab_slow")
        there, outcome = pull(small_ollama, SECOND).stdout.split()
    finally:
        master.run("nft delete table ip lab_slow; systemctl stop second-registry", check=False)
    assert outcome == "pulled"
    assert int(there) > 0, "the second pull resumes the first"


def test_a_reboot_of_the_server_needs_no_person(master, ai_server):
    boot = ai_server.run("cat /proc/1/stat | cut -d' ' -f22").stdout
    subprocess.run([sys.executable, "-m", "lab", "restart", "ai_server"], cwd=CHECKOUT, check=True, timeout=300)
    assert ai_server.run("cat /proc/1/stat | cut -d' ' -f22").stdout != boot
    sealed = "curl -sk https://127.0.0.1:8202/v1/sys/health | grep -o '\"sealed\":[a-z]*'"
    until(lambda: "false" in ai_server.run(sealed, check=False).stdout, 180, 0.5, "Vault unsealed")
    until(lambda: slots_loaded(master), 300, 0.5, "all slots loaded")
    units = "systemctl is-active ollama-warmup.service ollama-warmup-node0.service"
    assert ai_server.run(units).stdout.split() == ["active", "active"]
    failed = ai_server.run("systemctl list-units --failed --plain --no-legend").stdout
    assert failed == ""
    # A host keeps its table of names; Docker writes that of a container anew.
    states = changed_or_failed(master.salt("ai_server", "state.apply", "vault")["ai_server"])
    assert {(row["__id__"], row["result"]) for row in states.values()} <= {("vault-names", True)}
