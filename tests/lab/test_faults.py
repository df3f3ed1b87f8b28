"""What goes wrong on real servers: it is named, nothing is half done, and the platform comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.conftest import CHECKOUT

PULLED = "10.89.77.10:5000/library/gemma3-270m:f16"
UNUSED = "10.89.77.10:5000/library/gemma3-copy:q4_k_m"
BLOBS = "/mnt/ai_data/ollama_models/blobs"


def await_true(check, timeout, what):
    """Wait for a condition; the test fails naming it."""
    end = time.monotonic() + timeout
    while not check():
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout} s: {what}")
        time.sleep(0.5)


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


def test_a_full_disk_is_named_and_later_the_same_run_works(master, ai_server):
    ai_server.run("mkdir -p /mnt/small && mount -t tmpfs -o size=20m tmpfs /mnt/small && mkdir /mnt/small/store")
    start = (
        "chown ollama /mnt/small/store && systemd-run -q --unit=small-ollama -p User=ollama"
        " -E HOME=/mnt/small/store -E OLLAMA_MODELS=/mnt/small/store -E OLLAMA_HOST=127.0.0.1:11999"
        " /usr/local/bin/ollama serve"
    )
    try:
        ai_server.run(start)
        await_true(
            lambda: ai_server.run("curl -sf http://127.0.0.1:11999/api/version", check=False).returncode == 0,
            30,
            "serving",
        )
        pull = f"""curl -s http://127.0.0.1:11999/api/pull -d '{{"model": "{PULLED}", "insecure": true}}' | tail -n 1"""
        assert "no space left on device" in ai_server.run(pull).stdout
        ai_server.run("mount -o remount,size=1g /mnt/small")
        assert '"status":"success"' in ai_server.run(pull).stdout
    finally:
        ai_server.run("systemctl stop small-ollama; umount /mnt/small && rmdir /mnt/small", check=False)
    assert slots_loaded(master)


def test_a_registry_that_dies_in_mid_pull_and_comes_back(master, ai_server):
    digest = f"model={UNUSED}"
    master.salt("ai_server", "ollama.delete", "node1", UNUSED, check=False)
    master.run("systemctl stop docker-registry")
    try:
        answer = master.salt("ai_server", "model_slots.pull", digest, check=False)["ai_server"]
        assert "10.89.77.10:5000" in str(answer), "the registry that does not answer is named"
    finally:
        master.run("systemctl start docker-registry")
    await_true(
        lambda: master.run("curl -sf http://10.89.77.10:5000/v2/", check=False).returncode == 0, 30, "the registry"
    )
    assert master.salt("ai_server", "model_slots.pull", digest)["ai_server"] is True
    assert slots_loaded(master)


def test_a_reboot_of_the_server_needs_no_person(master, ai_server):
    boot = ai_server.run("cat /proc/1/stat | cut -d' ' -f22").stdout
    subprocess.run([sys.executable, "-m", "lab", "restart", "ai_server"], cwd=CHECKOUT, check=True, timeout=300)
    assert ai_server.run("cat /proc/1/stat | cut -d' ' -f22").stdout != boot
    sealed = "curl -sk https://127.0.0.1:8202/v1/sys/health | grep -o '\"sealed\":[a-z]*'"
    await_true(lambda: "false" in ai_server.run(sealed, check=False).stdout, 180, "Vault unsealed")
    await_true(lambda: slots_loaded(master), 300, "all slots loaded")
    units = "systemctl is-active ollama-warmup.service ollama-warmup-node0.service"
    assert ai_server.run(units).stdout.split() == ["active", "active"]
    failed = ai_server.run("systemctl list-units --failed --plain --no-legend").stdout
    assert failed == ""
