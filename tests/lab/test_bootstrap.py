"""A bare server becomes a minion: ``workstation``, from nothing but sshd and sudo. It is bare again afterwards."""

from __future__ import annotations

import json
import re

import pytest

from aiplatform import wait
from tests.lab.conftest import changed_or_failed

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
PLATFORM = "/srv/pillar/platform.sls"
KNOWN_HOSTS = "/etc/salt/pki/master/ssh/known_hosts"
STRIP = """
systemctl disable --now salt-minion 2>/dev/null
rm -rf /opt/salt /opt/salt-* /etc/salt /var/cache/salt /var/log/salt /usr/local/bin/salt-*
rm -f /etc/systemd/system/salt-minion.service
systemctl daemon-reload
systemctl reset-failed
"""


@pytest.fixture(scope="module")
def address(workstation):
    return workstation.run("hostname -I").stdout.split()[0]


@pytest.fixture(scope="module", autouse=True)
def _bare(master, workstation, address):
    """Nothing of Salt on the server, nothing of the server on the master but its place in the pillar."""
    before = master.run(["cat", PLATFORM]).stdout
    host = f"  hosts:\n    workstation: {{address: {address}, roles: []}}\n"
    assert "workstation" not in before
    forget = f"salt-key -y -d workstation; rm -f {KNOWN_HOSTS}"
    workstation.run(STRIP, check=False)
    master.run(forget)
    write(master, PLATFORM, before.replace("  hosts:\n", host))
    yield
    write(master, PLATFORM, before)
    master.run(forget)
    workstation.run(STRIP, check=False)


def write(host, path, text):
    host.run(["sh", "-c", 'printf %s "$1" > "$2"', "sh", text, path])


@pytest.fixture
def bootstrap(master, address):
    """Run the bootstrap; returns its answer."""

    def call(**arguments):
        words = {"host": address, "user": "admin"} | arguments
        argv = ["salt-run", "--out=json", "ai_platform.bootstrap", *(f"{key}={value}" for key, value in words.items())]
        done = master.run(argv, timeout=900, check=False)
        answer = json.loads(done.stdout)
        assert done.returncode == answer["retcode"]
        return answer

    return call


@pytest.fixture
def host_key(workstation):
    """The fingerprint, as an operator reads it on the server's console."""
    shown = workstation.run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout
    return FINGERPRINT.search(shown).group()


@pytest.fixture
def changed(workstation):
    """Change a file on the server for one test."""
    kept = {}

    def change(path, old, new):
        kept[path] = workstation.run(["cat", path]).stdout
        assert re.search(old, kept[path])
        write(workstation, path, re.sub(old, new, kept[path]))

    yield change
    for path, text in kept.items():
        write(workstation, path, text)


def is_bare(workstation):
    return not workstation.run("ls -d /opt/salt* /etc/salt /etc/systemd/system/salt-minion.service", check=False).stdout


def keys(master, status):
    return master.json(["salt-key", "--out=json", "-L"])[status]


def own_key(workstation):
    """The fingerprint of the minion's key, as the server shows it."""
    return json.loads(workstation.run("salt-call --local --out=json key.finger").stdout)["local"]


def test_an_unknown_host_key_is_refused_with_its_fingerprint(bootstrap, host_key, workstation):
    answer = bootstrap()
    assert "not known yet" in answer["error"]
    assert host_key in answer["error"]
    assert is_bare(workstation)


def test_another_host_key_than_named_is_refused(bootstrap, host_key, workstation):
    named = "SHA256:" + "A" * 43
    answer = bootstrap(host_key=named)
    assert named in answer["error"]
    assert host_key in answer["error"]
    assert is_bare(workstation)


def test_an_unknown_id_names_the_nearest(bootstrap):
    assert "did you mean workstation" in bootstrap(minion_id="workstaton")["error"]


def test_a_server_that_is_not_there_is_named(bootstrap):
    answer = bootstrap(minion_id="workstation", port=2222)
    assert "cannot be reached" in answer["error"]
    assert ":2222" in answer["error"]


def test_a_login_without_the_key_is_refused(bootstrap, host_key):
    answer = bootstrap(user="nobody", host_key=host_key)
    assert "Permission denied" in answer["error"]
    assert "authorized_keys" in answer["error"]


def test_sudo_with_a_password_is_refused(bootstrap, changed, host_key, workstation):
    changed("/etc/sudoers.d/admin", "NOPASSWD: ", "")
    answer = bootstrap(host_key=host_key)
    assert "a password is required" in answer["error"]
    assert "NOPASSWD" in answer["error"]
    assert is_bare(workstation)


def test_another_release_is_refused(bootstrap, changed, host_key, workstation):
    changed("/usr/lib/os-release", 'VERSION_ID="12"', 'VERSION_ID="11"')
    answer = bootstrap(host_key=host_key)
    assert "not supported" in answer["error"]
    assert is_bare(workstation)


def test_a_bare_server_becomes_a_minion(bootstrap, host_key, master, workstation, address):
    answer = bootstrap(host_key=host_key)
    assert answer.get("error") is None
    assert (answer["result"], answer["minion"], answer["key"]["status"]) == ("bootstrapped", "workstation", "accepted")
    assert "workstation" in keys(master, "minions")
    assert master.salt("workstation", "test.ping") == {"workstation": True}
    assert master.salt("workstation", "network.ip_addrs")["workstation"][0] == address


def test_a_second_run_changes_nothing(bootstrap, workstation):
    answer = bootstrap()
    assert answer["result"] == "already"
    assert answer["salt"]["changed"] == []
    assert answer["key"] == {"status": "already accepted", "fingerprint": own_key(workstation)}


def test_the_minion_has_what_the_platform_needs(master, workstation):
    workstation.run("/opt/salt/bin/python -c 'import docker, hvac, jsonschema, requests, saltext.vault'")
    assert master.salt("workstation", "test.version")["workstation"] in workstation.run("salt-call --version").stdout
    states = master.salt("workstation", "state.apply", "salt_minion")["workstation"]
    assert not changed_or_failed(states)


def test_the_minion_knows_its_master(master, workstation):
    config = json.loads(workstation.run("salt-call --local --out=json config.get master_finger").stdout)["local"]
    script = "import salt.utils.crypt as c; print(c.pem_finger('/etc/salt/pki/master/master.pub'))"
    assert config == master.run(["/opt/salt/bin/python", "-c", script]).stdout.strip()


def test_nothing_is_left_behind_by_ssh(workstation):
    assert workstation.run("find /tmp /var/tmp -name '*salt*' -o -name '*thin*'").stdout == ""


def test_the_key_of_somebody_else_is_refused_and_both_are_named(bootstrap, master, workstation):
    """Another minion got in first under this name; the server's own key is the one that counts."""
    own = own_key(workstation)
    pki = "/etc/salt/pki/minion"
    workstation.run("systemctl stop salt-minion")
    master.run("salt-key -y -d workstation")
    workstation.run(f"cp -a {pki} {pki}.own && rm {pki}/minion.pem {pki}/minion.pub && systemctl start salt-minion")
    wait.until(lambda: keys(master, "minions_pre") == ["workstation"], timeout=60, what="the foreign key")
    # The foreign minion runs on with its key in memory, while the server shows its own again.
    workstation.run(f"cp -a {pki}.own/. {pki}/ && rm -r {pki}.own")
    answer = bootstrap()
    assert own in answer["error"]
    assert "at the master" in answer["error"]
    assert len(set(re.findall(r"(?:[0-9a-f]{2}:){31}[0-9a-f]{2}", answer["error"]))) == 2
    assert keys(master, "minions_pre") == ["workstation"]
    assert "workstation" not in keys(master, "minions")

    master.run("salt-key -y -d workstation")
    workstation.run("systemctl restart salt-minion")
    assert bootstrap()["key"] == {"status": "accepted", "fingerprint": own}
