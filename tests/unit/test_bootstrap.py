"""The bootstrap of a minion: what it refuses, and that it accepts exactly one key."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiplatform import bootstrap, ssh
from aiplatform.errors import NotFoundError, PlatformError

PLATFORM = {
    "master": {"address": "192.0.2.10"},
    "hosts": {
        "ai_server": {"address": "192.0.2.100", "roles": ["ai_server"]},
        "nginx_proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
    },
}
FACTS = {
    "uid": "1000",
    "id": "debian",
    "version": "12",
    "name": "Debian GNU/Linux 12 (bookworm)",
    "init": "systemd",
    "python": "/usr/bin/python3",
    "sudo": "yes",
}


@pytest.fixture
def target(tmp_path):
    return ssh.Target(host="192.0.2.100", user="admin", known_hosts=tmp_path / "known_hosts")


def done(stdout="", stderr="", code=0):
    return subprocess.CompletedProcess([], code, stdout, stderr)


@pytest.fixture
def server(monkeypatch):
    """A server that answers the probe with these facts; commands other than the probe are recorded."""
    facts, commands, answers = dict(FACTS), [], [done()]

    def run(target, command, timeout=60, check=True):
        if command == bootstrap.PROBE:
            return done("".join(f"{name}={value}\n" for name, value in facts.items()))
        commands.append(command)
        return answers[-1]

    monkeypatch.setattr(ssh, "run", run)
    return facts, commands, answers


# --- Which host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "minion_id", "expected"),
    [
        ("192.0.2.100", "", ("ai_server", "192.0.2.100")),
        ("ai_server", "", ("ai_server", "192.0.2.100")),
        ("ai.example.com", "ai_server", ("ai_server", "ai.example.com")),
    ],
)
def test_id_and_address_are_found(host, minion_id, expected):
    assert bootstrap.identify(PLATFORM, host, minion_id) == expected


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(NotFoundError, match=r"ai_servr is no host.*did you mean ai_server"):
        bootstrap.identify(PLATFORM, "192.0.2.100", "ai_servr")


@pytest.mark.parametrize("host", ["192.0.2.30", "nginx_proxy"])
def test_the_address_of_another_host_is_refused(host):
    platform = {"hosts": {**PLATFORM["hosts"], "nginx_proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]}}}
    with pytest.raises(PlatformError, match=r"another host than ai_server.*192\.0\.2\.30 is nginx_proxy"):
        bootstrap.identify(platform, host, "ai_server")


def test_an_address_of_no_host_is_refused():
    with pytest.raises(NotFoundError, match=r"192\.0\.2\.101 is no host.*platform\.hosts"):
        bootstrap.identify(PLATFORM, "192.0.2.101")


# --- What the server must be ------------------------------------------------------------------------------------


def test_a_fit_server_passes_untouched(server, target):
    assert bootstrap.inspect(target) == FACTS
    assert server[1] == []


@pytest.mark.parametrize("change", [{"id": "ubuntu"}, {"version": "11"}, {"id": "rocky", "version": "8.9"}, {"id": ""}])
def test_another_system_is_refused(server, target, change):
    server[0].update(change)
    with pytest.raises(PlatformError, match=r"not supported.*Debian 12 or a system of the RHEL 9 family"):
        bootstrap.inspect(target)


@pytest.mark.parametrize("family", ["rhel", "rocky", "almalinux"])
def test_the_rhel_9_family_passes(server, target, family):
    server[0].update(id=family, version="9.4")
    assert bootstrap.inspect(target)["id"] == family


def test_sudo_with_a_password_is_refused_with_the_rule_to_add(server, target):
    server[0]["sudo"] = "sudo: a password is required"
    with pytest.raises(
        PlatformError, match=r"password is required.*admin ALL=\(ALL\) NOPASSWD: ALL.*/etc/sudoers\.d/admin"
    ):
        bootstrap.inspect(target)


def test_a_server_without_sudo_is_refused(server, target):
    server[0]["sudo"] = "missing"
    with pytest.raises(PlatformError, match=r"sudo is not installed.*user=root"):
        bootstrap.inspect(target)


def test_another_init_is_refused(server, target):
    server[0]["init"] = "openrc-init"
    with pytest.raises(PlatformError, match=r"systemd as process 1.*openrc-init"):
        bootstrap.inspect(target)


@pytest.mark.parametrize(("family", "version", "tool"), [("debian", "12", "apt-get"), ("rocky", "9.4", "dnf")])
def test_python_is_installed_where_it_is_missing(server, target, family, version, tool):
    server[0].update(python="", id=family, version=version)
    bootstrap.ensure_python(target, bootstrap.inspect(target), sudo=True)
    assert server[1][0][:4] == ["sudo", "-n", "sh", "-c"]
    assert tool in server[1][0][4]


def test_python_that_cannot_be_installed_is_an_error(server, target):
    server[0]["python"] = ""
    server[2].append(done(stderr="no route to the mirror", code=100))
    with pytest.raises(PlatformError, match=r"no Python 3.*no route to the mirror.*by hand"):
        bootstrap.ensure_python(target, server[0], sudo=True)


def test_a_server_whose_id_is_another_keys_is_left_as_it_was(server, target, monkeypatch, tmp_path):
    server[0]["python"] = ""
    pillar = {"platform": PLATFORM | {"master": {"address": "192.0.2.10"}}}
    keys = SimpleNamespace(key_str=lambda minion: {"minions": {minion: "another's key"}})
    for place, name, value in (
        (bootstrap.settings, "load", lambda _opts: pillar),
        (bootstrap.salt.key, "get_key", lambda _opts: nullcontext(keys)),
        (ssh, "scan", lambda _target: []),
        (ssh, "trust", lambda *_given: "met before"),
        (bootstrap, "remote_fingerprint", lambda *_given: "aa:bb"),
        (bootstrap, "fingerprint_of", lambda *_given: "cc:dd"),
    ):
        monkeypatch.setattr(place, name, value)
    with pytest.raises(PlatformError, match="cc:dd"):
        bootstrap.bootstrap({"pki_dir": str(tmp_path), "hash_type": "sha256"}, "ai_server", "admin")
    assert server[1] == []


# --- What salt-ssh says -----------------------------------------------------------------------------------------


def state(name, result=True, changes=None, comment=""):
    return {"__id__": name, "result": result, "changes": changes or {}, "comment": comment}


def printed(*rows):
    return done(json.dumps({"ai_server": {row["__id__"]: row for row in rows}}))


def test_changed_states_are_named():
    rows = printed(state("a"), state("b", changes={"new": 1}))
    assert bootstrap.changed_states(rows, "ai_server", "here") == ["b"]


def test_each_failed_state_is_named():
    rows = printed(state("a", result=False, comment="no package"), state("b", result=False, comment="one failed"))
    with pytest.raises(PlatformError, match=r"a: no package\n\s+b: one failed"):
        bootstrap.changed_states(rows, "ai_server", "here")


@pytest.mark.parametrize(
    "output",
    [
        json.dumps({"ai_server": ["Rendering SLS failed: undefined"]}),
        json.dumps({"ai_server": {"retcode": 255, "stderr": "undefined", "stdout": ""}}),
        json.dumps({"ai_server": "undefined"}),
        "Traceback: undefined",
        json.dumps({}) + "undefined",
    ],
)
def test_whatever_else_salt_ssh_prints_is_shown(output):
    with pytest.raises(PlatformError, match="could not apply") as caught:
        bootstrap.changed_states(done(output), "ai_server", "here")
    assert "undefined" in str(caught.value)


def test_an_empty_run_is_no_success():
    with pytest.raises(PlatformError, match="could not apply"):
        bootstrap.changed_states(done(json.dumps({"ai_server": {}})), "ai_server", "here")


def test_salt_ssh_checks_the_host_key_and_gets_no_secret(target, monkeypatch, tmp_path):
    seen = {}

    def run(argv, **kwargs):
        path = next(word.split("=", 1)[1] for word in argv if word.startswith("--roster-file="))
        seen["roster"] = json.loads(Path(path).read_text())
        seen["argv"] = argv
        return printed(state("a"))

    monkeypatch.setattr(subprocess, "run", run)
    enrol = {"master": "192.0.2.10", "master_finger": "aa:bb"}
    assert (
        bootstrap.install({"config_dir": "/etc/salt", "cachedir": str(tmp_path)}, target, "ai_server", True, enrol)
        == []
    )
    row = seen["roster"]["ai_server"]
    assert row["sudo"] is True
    assert "StrictHostKeyChecking=yes" in row["ssh_options"]
    assert f"UserKnownHostsFile={target.known_hosts}" in row["ssh_options"]
    assert not any("passw" in key for key in row)
    assert row["grains"] == {"enrol": enrol}
    assert seen["argv"][-3:] == ["ai_server", "state.apply", "salt_minion.enrol"]


# --- Which key --------------------------------------------------------------------------------------------------


def pem(body):
    return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"


OURS, THEIRS = (bootstrap.fingerprint_of(pem(body), "sha256") for body in ("ours", "theirs"))


class KeyStore:
    """The master's keys: ``{status: {minion: key}}``."""

    def __init__(self, **found):
        self.found = found
        self.accepted = []

    def key_str(self, match):
        return self.found

    def accept(self, *, match_dict):
        self.accepted.append(match_dict)


def accept(keys, fingerprint=OURS, timeout=0):
    return bootstrap.accept(keys, "ai_server", fingerprint, "sha256", timeout)


def test_the_fingerprint_is_what_a_minion_shows(tmp_path):
    import salt.utils.crypt

    path = tmp_path / "minion.pub"
    path.write_text(pem("line one\nline two"))
    assert bootstrap.fingerprint_of(path.read_text(), "sha256") == salt.utils.crypt.pem_finger(str(path))
    assert bootstrap.fingerprint_of(path.read_text().strip(), "sha256") == salt.utils.crypt.pem_finger(str(path))
    assert bootstrap.fingerprint_of("cat: no such file", "sha256") == ""


def test_the_servers_key_is_accepted():
    keys = KeyStore(minions_pre={"ai_server": pem("ours")})
    assert accept(keys) is True
    assert keys.accepted == [{"minions_pre": ["ai_server"]}]


def test_a_key_accepted_before_stays():
    keys = KeyStore(minions={"ai_server": pem("ours")})
    assert accept(keys) is False
    assert keys.accepted == []


@pytest.mark.parametrize("status", ["minions_pre", "minions", "minions_rejected"])
def test_another_key_is_refused_and_both_are_named(status):
    keys = KeyStore(**{status: {"ai_server": pem("theirs")}})
    with pytest.raises(
        PlatformError, match=rf"{OURS} \(on the server\).*{THEIRS} \(at the master\).*salt-key -d ai_server"
    ):
        accept(keys)
    assert keys.accepted == []


def test_a_key_under_the_name_of_a_server_that_has_none_is_refused():
    with pytest.raises(PlatformError, match=rf"none yet \(on the server\).*{THEIRS}"):
        bootstrap.known_key(KeyStore(minions={"ai_server": pem("theirs")}), "ai_server", "", "sha256")
    assert bootstrap.known_key(KeyStore(), "ai_server", "", "sha256") == ""


def test_a_rejected_key_stays_rejected():
    keys = KeyStore(minions_rejected={"ai_server": pem("ours")})
    with pytest.raises(PlatformError, match="is rejected"):
        accept(keys)
    assert keys.accepted == []


def test_a_key_that_never_arrives_is_an_error():
    with pytest.raises(PlatformError, match="the key of ai_server at this master"):
        accept(KeyStore(minions_denied={"ai_server": pem("ours")}))


def test_the_real_key_store_has_what_is_used_here(tmp_path):
    """The stand-in above speaks as Salt's own key store does."""
    import salt.config
    import salt.crypt
    import salt.key

    opts = dict(salt.config.master_config(None))
    opts |= {"pki_dir": str(tmp_path), "sock_dir": str(tmp_path), "cachedir": str(tmp_path / "cache")}
    (tmp_path / "minions_pre").mkdir()
    _private, public = salt.crypt.gen_keys(2048)
    (tmp_path / "minions_pre" / "ai_server").write_text(public)
    fingerprint = bootstrap.fingerprint_of(public, "sha256")
    with salt.key.get_key(opts) as keys:
        with pytest.raises(PlatformError, match="not the server's"):
            accept(keys, THEIRS)
        assert keys.list_keys()["minions"] == []
        assert accept(keys, fingerprint) is True
        assert keys.list_keys()["minions"] == ["ai_server"]
        assert accept(keys, fingerprint) is False
