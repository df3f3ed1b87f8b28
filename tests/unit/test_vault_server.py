"""The module, the states, the runner and the beacon of Vault's server."""

import json
from unittest.mock import MagicMock, create_autospec

import jinja2
import pytest
import yaml

from _beacons import vault_sealed
from _modules import vault_server as module
from _runners import vault_server as runner
from _states import vault_server as states
from aiplatform import vault, vault_host
from aiplatform.errors import PlatformError
from aiplatform.settings import PillarError, read_yaml
from tests.conftest import CHECKOUT

PILLAR = {
    "platform": {
        "name": "Acme",
        "slug": "acme",
        "domain": "acme.test",
        "data_root": "/data",
        "hosts": {
            "ai": {"address": "192.0.2.29", "roles": ["ai_server"]},
            "ns": {"address": "192.0.2.31", "roles": []},
        },
    },
    "services": {"vault": {"port": 8202}},
    "vault": read_yaml(CHECKOUT / "salt/vault/defaults.yaml")["vault"],
    "nginx": read_yaml(CHECKOUT / "salt/nginx/defaults.yaml")["nginx"],
}
STATES = [
    ("release_installed", ["/opt", "1.2.3", "src", "hash"], "release_present", "install_release"),
    ("key_present", ["k"], "key_present", "make_key"),
    ("storage_marked", ["s"], "storage_id", "mark_storage"),
]


def bind(patch, target, **dunders):
    for name, value in dunders.items():
        patch.setattr(target, f"__{name}__", value, raising=False)


@pytest.fixture
def salt():
    return {}


@pytest.fixture
def minion(monkeypatch, salt):
    bind(monkeypatch, module, salt=salt, pillar=PILLAR, opts={"id": "ai"}, grains={"cpuarch": "x86_64"})
    return module


class TestModule:
    def test_vault_belongs_on_one_host_only(self, minion, monkeypatch):
        assert minion.is_host() is True
        monkeypatch.setattr(module, "__opts__", {"id": "ns"})
        assert minion.is_host() is False

    def test_facts_are_empty_before_the_state(self, minion, tmp_path, monkeypatch):
        monkeypatch.setattr(vault_host, "TLS_DIR", tmp_path)
        assert minion.facts() == {}

    def test_a_release_with_a_wrong_hash_is_not_kept(self, minion, salt, tmp_path):
        archive = tmp_path / "vault.zip"
        archive.write_text("something else")
        salt["cp.cache_file"] = MagicMock(return_value=str(archive))
        with pytest.raises(PlatformError, match="not the pinned one"):
            minion.install_release(str(tmp_path / "opt"), "1.2.3", "http://x/{version}.zip", "sha256=" + "0" * 64)
        assert salt["cp.cache_file"].call_args.args == ("http://x/1.2.3.zip",)
        assert not archive.exists()
        assert not (tmp_path / "opt").exists()

    def test_a_release_that_cannot_be_fetched_is_named(self, minion, salt, tmp_path):
        salt["cp.cache_file"] = MagicMock(return_value=False)
        with pytest.raises(PlatformError, match=r"fetched.*http://x/1\.2\.3"):
            minion.install_release(str(tmp_path), "1.2.3", "http://x/{version}", "sha256=0")

    def test_another_storage_is_not_set_aside_and_nothing_is_stopped(self, minion, salt, monkeypatch, tmp_path):
        monkeypatch.setattr(module, "data_dir", lambda: str(tmp_path))
        salt["service.stop"] = MagicMock()
        with pytest.raises(PlatformError, match="Another storage"):
            minion.set_storage_aside("not-this-one")
        salt["service.stop"].assert_not_called()

    def test_a_service_that_does_not_restart_is_an_error(self, minion, salt):
        salt["service.systemctl_reload"] = MagicMock(return_value=True)
        salt["service.restart"] = MagicMock(return_value=False)
        with pytest.raises(PlatformError, match="did not restart"):
            minion.restart()


@pytest.fixture(params=[False, True], ids=["real", "dry"])
def dry(request):
    return request.param


@pytest.fixture
def state(monkeypatch, salt, dry, tmp_path):
    for name in ("release_present", "install_release", "key_present", "make_key", "storage_id", "mark_storage"):
        salt[f"vault_server.{name}"] = create_autospec(getattr(module, name))
    salt["beacons.add"] = MagicMock(return_value={"result": True, "comment": ""})
    salt["beacons.delete"] = MagicMock(return_value={"result": True})
    bind(monkeypatch, states, salt=salt, opts={"test": dry, "conf_file": str(tmp_path / "minion")})
    return states


class TestStates:
    @pytest.mark.parametrize(("function", "args", "asks", "does"), STATES)
    def test_makes_what_is_missing(self, state, salt, dry, function, args, asks, does):
        salt[f"vault_server.{asks}"].return_value = ""
        ret = getattr(state, function)(*args)
        assert ret["result"] is (None if dry else True)
        assert ret["changes"]
        assert salt[f"vault_server.{does}"].called is not dry

    @pytest.mark.parametrize(("function", "args", "asks", "does"), STATES)
    def test_leaves_what_is_there(self, state, salt, function, args, asks, does):
        salt[f"vault_server.{asks}"].return_value = "there"
        ret = getattr(state, function)(*args)
        assert (ret["result"], ret["changes"]) == (True, {})
        salt[f"vault_server.{does}"].assert_not_called()

    def test_the_watch_is_told_to_the_minion_and_survives_its_restart(self, state, salt, dry, tmp_path):
        ret = state.watched("vault_sealed", port=8302)
        target = tmp_path / "minion.d/vault_sealed.conf"
        assert ret["result"] is (None if dry else True)
        assert target.exists() is not dry
        assert salt["beacons.add"].called is not dry
        if not dry:
            assert "port: 8302" in target.read_text()
            assert state.watched("vault_sealed", port=8302)["changes"] == {}
            assert state.watched("vault_sealed", enabled=False)["changes"]
            assert not target.exists()

    def test_without_a_master_nobody_is_told(self, state, salt, monkeypatch):
        monkeypatch.setattr(states, "__opts__", states.__opts__ | {"file_client": "local"})
        assert state.watched("vault_sealed")["changes"] == {}
        salt["beacons.add"].assert_not_called()

    def test_a_minion_that_refuses_the_watch_fails_the_state(self, state, salt, dry, tmp_path):
        salt["beacons.add"].return_value = {"result": False, "comment": "not available"}
        ret = state.watched("vault_sealed")
        if not dry:
            assert ret["result"] is False
            assert "not available" in ret["comment"]
        assert not (tmp_path / "minion.d/vault_sealed.conf").exists()


@pytest.fixture
def master(monkeypatch, salt, tmp_path):
    pillar = PILLAR | {"vault": PILLAR["vault"] | {"key_store": str(tmp_path / "keys")}}
    bind(monkeypatch, runner, salt=salt, opts={}, context={})
    monkeypatch.setattr(runner.platform_settings, "load", lambda opts: pillar)
    return runner


class TestRunner:
    def test_a_failure_is_reported_and_sets_both_codes(self, master):
        ret = master.bootstrap()
        assert (ret["result"], ret["retcode"]) == (False, 1)
        assert "setup_master" in ret["comment"]
        assert master.__context__["retcode"] == 1

    @pytest.mark.parametrize(("changes", "forgets"), [({"vault": {}}, True), ({"seal": {}}, False), ({}, False)])
    def test_logins_of_an_earlier_vault_are_forgotten(self, master, salt, monkeypatch, changes, forgets):
        salt["vault.clear_cache"] = MagicMock()
        salt["salt.execute"] = MagicMock()
        monkeypatch.setattr(runner, "_bootstrap", lambda test: MagicMock(run=lambda: changes))
        assert master.bootstrap()["result"] is True
        assert salt["vault.clear_cache"].called is forgets
        assert salt["salt.execute"].called is forgets
        salt["vault.clear_cache"].reset_mock()
        master.bootstrap(test=True)
        salt["vault.clear_cache"].assert_not_called()

    def test_unsealing_without_keys_is_a_failure_with_the_path(self, master, tmp_path):
        ret = master.unseal()
        assert ret["result"] is False
        assert str(tmp_path / "keys" / "init.json") in ret["comment"]

    def test_what_the_operator_wants_sealed_stays_sealed(self, master, monkeypatch):
        pillar = master.platform_settings.load({})
        pillar["vault"]["auto_unseal"] = False
        monkeypatch.setattr(runner.vault, "connect", MagicMock(side_effect=AssertionError("asked Vault")))
        ret = master.unseal(automatic=True)
        assert (ret["result"], ret["changes"]) == (True, {})

    def test_a_reset_wants_the_address(self, master, salt):
        salt["salt.execute"] = MagicMock()
        ret = master.reset(confirm="yes")
        assert ret["result"] is False
        assert "confirm=192.0.2.29" in ret["comment"]
        salt["salt.execute"].assert_not_called()

    def test_a_reset_keeps_everything_aside(self, master, salt, tmp_path):
        store = runner.KeyStore(tmp_path / "keys")
        store.ensure()
        store.write("init.json", {"storage_id": "abc", "keys": []})
        facts = {"ai": {"retcode": 0, "ret": {"storage_id": "abc"}}}
        salt["salt.execute"] = MagicMock(return_value=facts)
        salt["vault.clear_cache"] = MagicMock()
        assert master.reset(confirm="192.0.2.29", test=True)["result"] is None
        assert store.read("init.json")
        assert master.reset(confirm="192.0.2.29")["result"] is True
        assert store.read("init.json") is None
        assert store.read("init.json.aside-abc")
        called = [call.args[1] for call in salt["salt.execute"].call_args_list]
        assert called == ["vault_server.facts", "vault_server.set_storage_aside", "vault.clear_cache"]

    @pytest.mark.parametrize(
        ("reply", "said"),
        [
            ({}, "no answer"),
            ({"ai": {"retcode": 1, "ret": "it broke"}}, "it broke"),
            ({"ai": {"retcode": 254, "ret": "'vault_server.restart' is not available."}}, "not available"),
        ],
    )
    def test_what_the_host_does_not_do_is_an_error(self, master, salt, reply, said):
        salt["salt.execute"] = MagicMock(return_value=reply)
        with pytest.raises(PlatformError, match=said):
            runner.Minion("ai").restart()

    def test_a_host_that_never_had_the_state_has_no_facts(self, master, salt):
        reply = {"ai": {"retcode": 254, "ret": "'vault_server.facts' is not available."}}
        salt["salt.execute"] = MagicMock(return_value=reply)
        assert runner.Minion("ai").facts() == {}

    def test_a_pillar_that_is_refused_is_the_comment_of_the_set_up(self, master, monkeypatch):
        monkeypatch.setattr(runner.platform_settings, "load", MagicMock(side_effect=PillarError(["a.b: is 1"])))
        ret = master.setup_master()
        assert (ret["result"], ret["retcode"]) == (False, 1)
        assert "a.b: is 1" in ret["comment"]

    def test_status_of_a_vault_that_is_down_is_a_failure(self, master):
        PILLAR["platform"]["hosts"]["ai"]["address"] = "127.0.0.1"
        try:
            ret = master.status()
        finally:
            PILLAR["platform"]["hosts"]["ai"]["address"] = "192.0.2.29"
        assert ret["reachable"] is False
        assert ret["retcode"] == 1


@pytest.mark.parametrize(
    ("automatic", "pgp_keys", "enabled"), [(True, [], True), (False, [], False), (True, ["a2V5"], False)]
)
def test_vault_is_watched_where_the_master_can_unseal_it(automatic, pgp_keys, enabled):
    vault = PILLAR["vault"] | {"auto_unseal": automatic, "pgp_keys": pgp_keys}
    salt = {"vault_server.is_host": lambda: True, "vault_server.configuration": dict, "vault_server.hosts_file": str}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 (no HTML)
    environment.filters["json"] = json.dumps  # Salt's own
    template = environment.from_string((CHECKOUT / "salt/vault/init.sls").read_text())
    states = yaml.safe_load(template.render(salt=salt, pillar=PILLAR | {"vault": vault}))
    assert {"enabled": enabled} in states["vault_sealed"]["vault_server.watched"]


def test_the_masters_client_uses_no_proxy_of_the_environment(monkeypatch, httpserver):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    answer = {"initialized": True, "sealed": False, "version": "1.2.3", "t": 1}
    httpserver.expect_request("/v1/sys/seal-status").respond_with_json(answer)
    assert vault.seal(vault.connect(httpserver.url_for(""), True)).version == "1.2.3"


class TestBeacon:
    @pytest.fixture
    def answer(self, monkeypatch):
        reply = MagicMock()
        monkeypatch.setattr(vault_sealed.requests, "get", MagicMock(return_value=reply))
        return lambda value: setattr(reply, "json", lambda: json.loads(json.dumps(value)))

    @pytest.mark.parametrize(
        ("initialized", "sealed", "events"),
        [(True, True, [{"tag": "sealed"}]), (True, False, []), (False, True, [])],
    )
    def test_speaks_only_of_a_sealed_vault(self, answer, initialized, sealed, events):
        answer({"initialized": initialized, "sealed": sealed})
        assert vault_sealed.beacon([{"interval": 5}]) == events

    def test_a_vault_that_is_down_is_not_its_business(self):
        assert vault_sealed.beacon([{"port": 1}]) == []

    def test_asks_on_loopback_with_the_hosts_certificates(self, answer):
        answer({})
        vault_sealed.beacon([{"interval": 5}, {"port": 8302}])
        call = vault_sealed.requests.get.call_args
        assert call.args == ("https://127.0.0.1:8302/v1/sys/seal-status",)
        assert call.kwargs["verify"] == vault_sealed.CERTIFICATES

    def test_a_proxy_of_the_environment_is_not_used(self, monkeypatch, httpserver):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        httpserver.expect_request("/v1/sys/seal-status").respond_with_json({"initialized": True, "sealed": True})
        plain = vault_sealed.requests.get

        def get(url, **kwargs):
            return plain(url.replace("https:", "http:"), **kwargs)

        monkeypatch.setattr(vault_sealed.requests, "get", get)
        assert vault_sealed.beacon([{"port": httpserver.port}]) == [{"tag": "sealed"}]

    @pytest.mark.parametrize(("port", "valid"), [(8202, True), ("x", False), (0, False), (70000, False)])
    def test_validation(self, port, valid):
        assert vault_sealed.validate([{"port": port}])[0] is valid
