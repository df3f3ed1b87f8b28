"""Vault on the lab's hosts: seal and rights."""

from __future__ import annotations

import json

from aiplatform.wait import until
from lab.settings import address

SEAL = "curl -s --cacert /etc/vault.d/tls/vault.crt https://127.0.0.1:8202/v1/sys/seal-status"


def sealed(host) -> bool:
    out = host.run(SEAL, check=False).stdout
    return json.loads(out)["sealed"] if out.startswith("{") else True


def bootstrap(master, *args) -> dict:
    """Run the bootstrap and return its changes."""
    done = master.runner("vault_server.bootstrap", *args)
    assert done["result"] is not False, done["comment"]
    return done["changes"]


def test_a_restart_of_the_service_needs_no_person(ai_server):
    ai_server.run("systemctl restart vault")
    until(lambda: not sealed(ai_server), 60, 1, "Vault unsealed")


def test_a_killed_vault_comes_back(ai_server):
    ai_server.run("systemctl kill --signal=KILL --kill-who=main vault")
    until(lambda: not sealed(ai_server), 60, 1, "Vault unsealed")


def test_the_host_knows_the_public_names_whatever_dns_knows(ai_server):
    for name in ("idm", "vault", "ollama-ui"):
        found = ai_server.run(f"getent --service=files hosts {name}.lab.internal").stdout
        assert found.split()[0] == address(30)


def test_a_second_bootstrap_changes_nothing(master):
    assert bootstrap(master, "test=True") == {}
    assert bootstrap(master) == {}


def test_a_dry_run_names_what_the_run_then_changes(master):
    edit = {"vault": {"secrets": {"probe": {"readers": ["coredns_host"], "keys": {"value": "none"}}}}}
    master.run(f"""
        cp /srv/pillar/top.sls /srv/pillar/top.kept
        echo '{json.dumps(edit)}' > /srv/pillar/vault_edit.sls
        echo '    - vault_edit' >> /srv/pillar/top.sls
    """)
    try:
        dry = bootstrap(master, "test=True")
        done = bootstrap(master)
    finally:
        master.run("mv /srv/pillar/top.kept /srv/pillar/top.sls; rm -f /srv/pillar/vault_edit.sls")
        bootstrap(master)
    assert list(dry) == ["policy ai-platform/coredns_host"]
    assert done == dry
    assert bootstrap(master, "test=True") == {}


def test_the_key_store_and_the_login_are_root_s_alone(master):
    listed = master.run("stat -c '%a %U %n' /etc/salt/vault-keys /etc/salt/vault-keys/* /etc/salt/master.d/vault.conf")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert {(mode, user) for mode, user, _ in rows} <= {("700", "root"), ("600", "root")}
    assert json.loads(master.run("cat /etc/salt/vault-keys/init.json").stdout)["root_token"] is None


def test_the_host_gives_no_key_away(ai_server):
    assert ai_server.run("stat -c '%a %U %G' /etc/vault.d/tls/vault.key").stdout.split() == ["640", "root", "vault"]
    facts = ai_server.run("salt-call --out=json vault_server.facts").stdout
    assert "PRIVATE" not in facts


def test_a_refusal_costs_no_new_login(ai_server, coredns_host):
    """Each verification asks for a secret that is not the host's own; a login would take a second of each deploy."""
    check = "salt-call --out=json verify.run only='[vault_]'"
    coredns_host.run(check)
    count = """grep -c '"path":"auth/[^"]*/login"' /var/log/vault/audit.log || true"""
    before = int(ai_server.run(count).stdout)
    rows = coredns_host.json(check)["local"]
    assert "permission denied" in [row["actual"] for row in rows]
    assert int(ai_server.run(count).stdout) == before


def test_audit_logs_are_rotated_and_written_on(ai_server):
    ai_server.run("logrotate --force /etc/logrotate.d/vault")
    ai_server.run("salt-call --out=json vault.read_secret secret/ai-platform-other/x", check=False)
    until(
        lambda: ai_server.run("stat -c %s /var/log/vault/audit.log", check=False).stdout.strip() not in ("", "0"),
        30,
        1,
        "the new audit log to be written",
    )
    assert ai_server.run("stat -c '%a %U' /var/log/vault/audit.log").stdout.split() == ["600", "vault"]
