"""The firewall's rules, judged by nft itself in a network namespace of their own."""

from __future__ import annotations

import subprocess

import pytest

from aiplatform import firewall
from lab import machine
from tests.unit.test_firewall import SETTINGS


@pytest.fixture(scope="module", autouse=True)
def _nft():
    machine.ensure_packages(["nftables"], "The test of the firewall's rules")


@pytest.mark.parametrize("host", ["ai_server", "coredns_host", "nginx_proxy", "stranger"])
def test_nft_loads_it_twice_and_keeps_other_tables(tmp_path, host):
    path = tmp_path / "rules.nft"
    path.write_text(firewall.ruleset(SETTINGS, host))
    steps = f"nft add table inet other && nft -c -f {path} && nft -f {path} && nft -f {path} && nft list ruleset"
    done = subprocess.run(["unshare", "--net", "sh", "-c", steps], capture_output=True, text=True, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "table inet other" in done.stdout
    assert done.stdout.count("table inet ai_platform") == 1
    assert firewall.digest_of(done.stdout) == firewall.digest_of(path.read_text())
