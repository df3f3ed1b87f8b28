"""A host that is its own master: what its pillar must say, and whose key is accepted."""

from __future__ import annotations

import json
import stat

import pytest
import salt.crypt
import yaml

from _modules import platform_single as module
from _pillar import ai_platform
from _states import platform_single as state
from aiplatform import bootstrap, own_master
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

WHOLE = {"ai_server": {"address": "192.0.2.50", "roles": ["ai_server", "nginx_proxy", "coredns_host"]}}


@pytest.fixture(scope="module")
def pem():
    return salt.crypt.gen_keys(2048)[1]


@pytest.fixture
def folder(tmp_path, pem):
    """Salt's folder, with the key that the master made at its first start."""
    path = tmp_path / "pki/master/master.pub"
    path.parent.mkdir(parents=True)
    path.write_text(pem)
    return tmp_path


@pytest.fixture
def enrolment(folder):
    return own_master.Enrolment(folder, "ai_server")


def test_the_minions_key_is_accepted_and_its_configuration_names_the_master(enrolment, folder, pem):
    assert list(enrolment.differences()) == ["key", "configuration"]
    enrolment.make()
    accepted = (folder / "pki/master/minions/ai_server").read_text()
    assert accepted == (folder / "pki/minion/minion.pub").read_text()
    config = json.loads((folder / "minion.d/host.conf").read_text())
    fingerprint = bootstrap.fingerprint_of(pem, "sha256")
    assert config == {"id": "ai_server", "master": "127.0.0.1", "master_finger": fingerprint}
    assert stat.S_IMODE((folder / "pki/minion/minion.pem").stat().st_mode) == 0o400
    assert enrolment.differences() == {}


def test_a_second_time_keeps_the_key(enrolment, folder):
    enrolment.make()
    before = (folder / "pki/minion/minion.pem").read_text()
    (folder / "minion.d/host.conf").write_text("{}")
    assert list(enrolment.differences()) == ["configuration"]
    enrolment.make()
    assert (folder / "pki/minion/minion.pem").read_text() == before


def test_a_strangers_key_under_this_name_is_refused_with_both(enrolment, folder, pem):
    enrolment.make()
    (folder / "pki/master/minions/ai_server").write_text(pem)
    with pytest.raises(PlatformError, match=bootstrap.fingerprint_of(pem, "sha256")):
        enrolment.differences()


def test_without_a_masters_key_nothing_is_written(tmp_path):
    with pytest.raises(PlatformError, match="is it running"):
        own_master.Enrolment(tmp_path, "ai_server").make()
    assert list(tmp_path.iterdir()) == []


def test_before_the_masters_first_start_all_is_predicted(tmp_path):
    assert list(own_master.Enrolment(tmp_path, "ai_server").differences()) == ["key", "configuration"]


@pytest.mark.parametrize(
    "hosts",
    [
        {"ai_server": {"address": "192.0.2.50", "roles": ["ai_server"]}},
        WHOLE | {"other": {"address": "192.0.2.51", "roles": []}},
        {"other": WHOLE["ai_server"]},
        {"ai_server": {"address": "192.0.2.50", "roles": ["ollama_server"]}},
    ],
)
def test_pillar_must_make_the_host_the_whole_platform(hosts):
    own_master.refuse_unless_whole({"platform": {"hosts": WHOLE}}, "ai_server")
    with pytest.raises(PlatformError, match=r"platform\.hosts; expected: ai_server alone"):
        own_master.refuse_unless_whole({"platform": {"hosts": hosts}}, "ai_server")


def test_all_roles_on_one_host_fit_together(tmp_path, monkeypatch):
    """No port twice, no key that is missing."""
    monkeypatch.setattr(ai_platform, "__opts__", {"pillar_roots": {"base": [str(tmp_path)]}}, raising=False)
    written = yaml.safe_load((CHECKOUT / "pillar/platform.sls").read_text())
    written["platform"]["hosts"] = WHOLE
    for more in ({}, {"ollama": {"api_port": 11434}, "slots": {1: {}, 3: {}}}):
        pillar = ai_platform.ext_pillar("ai_server", written | more, formulas=str(CHECKOUT / "salt"))
        assert pillar.get("_errors") is None
        assert set(pillar["roles"]) == set(own_master.ROLES)


def test_the_checkouts_own_script_is_run_with_the_sites_pillar(tmp_path):
    script = tmp_path / "etc/configure-master.sh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/said\n')
    script.chmod(0o755)
    own_master.start_master(tmp_path, ["/srv/pillar", str(tmp_path / "pillar")])
    assert (tmp_path / "said").read_text() == "/srv/pillar "
    script.write_text("#!/bin/sh\necho no room left >&2; exit 3\n")
    with pytest.raises(PlatformError, match="exit 3: no room left"):
        own_master.start_master(tmp_path, [])


@pytest.mark.parametrize("test", [True, False])
def test_a_dry_run_starts_no_master(tmp_path, monkeypatch, test):
    started = []
    functions = {
        "service.available": lambda _: False,
        "platform_single.master_differences": module.master_differences,
        "platform_single.start_master": lambda: started.append(1),
    }
    for loaded in (module, state):
        monkeypatch.setattr(loaded, "__salt__", functions, raising=False)
        options = {"test": test, "file_roots": {"base": [str(CHECKOUT / "salt")]}}
        monkeypatch.setattr(loaded, "__opts__", options, raising=False)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    ret = state.master_running("x")
    assert set(ret["changes"]) == {"configuration", "salt-master"}
    assert bool(started) is not test
