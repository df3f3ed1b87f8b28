"""Containers: what Docker is told, when one is made anew, and what nobody gets to see."""

from __future__ import annotations

import inspect
import json
from unittest.mock import Mock, create_autospec

import docker.errors
import pytest

from _modules import platform_container as module
from _modules import platform_volume as volumes
from _states import platform_container as state
from aiplatform import containers, settings
from aiplatform.errors import PlatformError
from tests.conftest import CHECKOUT

PILLAR = settings.read_yaml(CHECKOUT / "salt/containers/defaults.yaml")["containers"]
WANTED = {"user": "1000:1000", "memory_mib": 256, "command": ["/bin/web"], "publish": ["192.0.2.9:8080:80"]}
SECRET = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


def parts(**changed):
    return containers.specification(PILLAR, "web", "example.com/web:1", **(WANTED | changed))


def config(contents=None, **changed):
    wanted = parts(**changed)
    return containers.engine_config("web", wanted, containers.part_digests(wanted, contents or {}))


@pytest.mark.parametrize(
    ("registry", "image", "digest", "expected"),
    [
        (None, "quay.io/keycloak/keycloak", None, "quay.io/keycloak/keycloak:1"),
        (None, "postgres", None, "docker.io/library/postgres:1"),
        (None, "qdrant/qdrant", "sha256:aa", "docker.io/qdrant/qdrant@sha256:aa"),
        ("10.0.0.1:5000", "quay.io/keycloak/keycloak", "sha256:aa", "10.0.0.1:5000/keycloak/keycloak@sha256:aa"),
        ("mirror.example.com", "postgres", None, "mirror.example.com/library/postgres:1"),
        ("10.0.0.1:5000", "localhost/web", None, "10.0.0.1:5000/web:1"),
    ],
)
def test_a_mirror_takes_the_place_of_the_images_registry(registry, image, digest, expected):
    assert containers.reference(registry, image, "1", digest) == expected


def test_a_container_is_confined_unless_it_says_otherwise():
    host = config()["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == []
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20
    assert host["PidsLimit"] == PILLAR["pids"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["RestartPolicy"] == {"Name": "unless-stopped"}
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "192.0.2.9", "HostPort": "8080"}]}
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert "noexec" in host["Tmpfs"]["/tmp"]
    assert host["NetworkMode"] == "ai-platform"
    assert config()["User"] == "1000:1000"


@pytest.mark.parametrize("user", ["0", "0:0", "root", "root:root", ""])
def test_root_is_refused(user):
    with pytest.raises(PlatformError, match="No container of the platform runs as root"):
        parts(user=user)


@pytest.mark.parametrize("entry", ["8080:80", "80", ":8080:80", "192.0.2.9:x:80"])
def test_a_port_without_an_address_is_refused(entry):
    with pytest.raises(PlatformError, match="explicit address"):
        parts(publish=[entry])


def test_ports_of_both_protocols_and_of_an_ipv6_address():
    bindings = config(publish=["192.0.2.9:53:1053/udp", "[fd00::9]:53:1053"])["HostConfig"]["PortBindings"]
    assert bindings == {
        "1053/udp": [{"HostIp": "192.0.2.9", "HostPort": "53"}],
        "1053/tcp": [{"HostIp": "fd00::9", "HostPort": "53"}],
    }


def test_a_health_check_is_given_in_seconds():
    health = config(health={"test": "true", "interval": 2, "start_period": 0.5})["Healthcheck"]
    assert health["Test"] == ["CMD-SHELL", "true"]
    assert (health["Interval"], health["StartPeriod"]) == (2 * 10**9, 5 * 10**8)


def test_secrets_are_read_from_their_file_and_stand_nowhere_else():
    files = {"secrets.env": f"PASSWORD={SECRET}\n".encode()}
    made = config(files, files="/etc/web", secrets=True, entrypoint=["/entry"])
    assert made["Entrypoint"][-1] == "/run/platform/secrets.env"
    assert made["Cmd"] == ["/entry", "/bin/web"]
    assert SECRET not in json.dumps(made)
    mount = made["HostConfig"]["Mounts"][0]
    assert (mount["Source"], mount["Target"], mount["ReadOnly"]) == ("/etc/web", "/run/platform", True)


def test_volumes_are_writable_unless_they_say_otherwise():
    mounts = config(volumes={"/data": "/data", "/etc/web/passwd": "/etc/passwd:ro", "build": "/build"})["HostConfig"][
        "Mounts"
    ]
    found = {mount["Target"]: (mount["Type"], mount["ReadOnly"]) for mount in mounts}
    assert found == {"/data": ("bind", False), "/etc/passwd": ("bind", True), "/build": ("volume", False)}


def test_secrets_without_a_program_are_refused():
    with pytest.raises(PlatformError, match="the program to start"):
        parts(files="/etc/web", secrets=True, command=None)


def existing(files=None, status="running", health=None, **changed):
    made = config(files, **changed)
    shown = {"Status": status, "ExitCode": 1, "OOMKilled": False} | ({"Health": {"Status": health}} if health else {})
    return {"Config": {"Labels": made["Labels"], "Image": made["Image"]}, "State": shown, "RestartCount": 0}


def differences(inspected, files=None, **changed):
    wanted = parts(**changed)
    return containers.differences(inspected, wanted, containers.part_digests(wanted, files or {}))


def test_what_is_as_wanted_is_left_alone():
    files = {"secrets.env": b"A=1\n"}
    assert differences(existing(files), files) == {}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"memory_mib": 512}, "limits"),
        ({"publish": ["192.0.2.9:8081:80"]}, "ports"),
        ({"publish": None}, "ports"),
        ({"environment": {"MODE": "x"}}, "environment"),
        ({"writable_root": True}, "root"),
        ({"cap_add": ["NET_BIND_SERVICE"]}, "capabilities"),
        ({"command": ["/bin/other"]}, "command"),
        ({"volumes": {"/data": "/data"}}, "mounts"),
    ],
)
def test_what_differs_is_named_without_its_value(changed, part):
    assert differences(existing(), **changed) == {part: {"old": "as before", "new": "changed"}}


def test_a_changed_secret_is_noticed_and_not_shown():
    found = differences(existing({"secrets.env": b"A=1\n"}), {"secrets.env": f"A={SECRET}\n".encode()})
    assert found == {"files": {"old": "as before", "new": "changed"}}


def test_files_do_not_run_into_each_other():
    wanted = parts()
    one, other = ({"a": b"bc", "d": b""}, {"a": b"b", "cd": b""})
    assert containers.part_digests(wanted, one) != containers.part_digests(wanted, other)


def test_a_container_of_somebody_else_is_replaced():
    assert "not made by this state" in str(differences({"Config": {"Labels": None, "Image": "x"}}))


@pytest.mark.parametrize(
    ("status", "health", "expected"),
    [
        ("running", None, {}),
        ("running", "healthy", {}),
        ("exited", None, {"status": {"old": "exited", "new": "running"}}),
        ("running", "unhealthy", {"health": {"old": "unhealthy", "new": "healthy"}}),
    ],
)
def test_one_that_does_not_run_well_is_repaired(status, health, expected):
    assert containers.repair(existing(status=status, health=health)) == expected


def test_values_are_quoted_for_the_shell_and_none_is_empty():
    assert containers.secrets_text({"B": "it's $HOME", "A": 1}) == "A=1\nB='it'\"'\"'s $HOME'\n"
    with pytest.raises(PlatformError, match="is empty; where: A"):
        containers.secrets_text({"A": ""})


def test_a_log_shows_no_value_of_the_files():
    files = [f"KEY='{SECRET} x'\nSHORT=yes\n".encode(), b"no assignment", b"odd=it's\n"]
    assert containers.redact(f"login with {SECRET} x failed, yes", files) == "login with ******** failed, yes"


# -- module ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """The module with an engine that the test speaks for."""
    fake = create_autospec(docker.APIClient, instance=True)
    monkeypatch.setattr(module, "__pillar__", {"containers": PILLAR | {"pull_timeout": 1}}, raising=False)
    monkeypatch.setattr(module, "__context__", {"platform_container.engine": fake}, raising=False)
    images = {"platform_image.pull": Mock(return_value=False), "platform_image.pinned": lambda image: image}
    monkeypatch.setattr(module, "__salt__", images, raising=False)
    return fake


def test_what_the_engine_refuses_leaves_the_old_container(engine):
    reply = Mock(status_code=400, reason="bad")
    engine.create_container_from_config.side_effect = docker.errors.APIError("bad", reply, explanation="no such path")
    with pytest.raises(PlatformError, match="the old one stays; where: web; actual: no such path"):
        module.create("web", parts())
    assert [call.args[0] for call in engine.remove_container.call_args_list] == ["web-new"]


def test_the_new_container_takes_the_old_ones_place(engine):
    module.create("web", parts())
    names = [name for name, _, _ in engine.method_calls]
    assert names.index("create_container_from_config") < names.index("rename") < names.index("start")
    engine.rename.assert_called_once_with("web-new", "web")


def test_one_that_ends_is_reported_with_its_last_lines_and_without_secrets(engine, tmp_path):
    (tmp_path / "secrets.env").write_text(f"KEY={SECRET}\n")
    engine.inspect_container.return_value = existing(status="exited")
    engine.logs.return_value = f"starting\nbad key {SECRET}\n".encode()
    with pytest.raises(PlatformError, match=r"ended with exit code 1(?s:.*)starting\nbad key \*{8}"):
        module.wait_well("web", 1, str(tmp_path))


def test_one_that_never_becomes_healthy_is_reported_in_time(engine):
    engine.inspect_container.return_value = existing(health="starting")
    engine.logs.return_value = b"still loading\n"
    with pytest.raises(PlatformError, match=r"not well after 0\.01 s \(health: starting\)(?s:.*)still loading"):
        module.wait_well("web", 0.01)


# -- state ----------------------------------------------------------------------------------------------------------


class Host:
    """The functions that the state calls, on a host with one container or none."""

    def __init__(self, inspected=None, answers=True):
        names = (
            "answers",
            "inspect",
            "create",
            "restart",
            "remove",
            "wait_well",
            "digests",
            "network",
            "create_network",
        )
        self.calls = {f"platform_container.{name}": create_autospec(getattr(module, name)) for name in names}
        self.calls["platform_container.specification"] = lambda name, **wanted: containers.specification(
            PILLAR, name, **wanted
        )
        self["inspect"].return_value = inspected
        self["answers"].return_value = answers
        self["digests"].side_effect = lambda wanted, files=None: containers.part_digests(wanted, {})
        self["network"].return_value = None

    def __getitem__(self, name):
        return self.calls[f"platform_container.{name}"]


@pytest.fixture
def apply(monkeypatch):
    def run(host, test=False, **changed):
        monkeypatch.setattr(state, "__salt__", host.calls, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        return state.running("web", "example.com/web:1", **(WANTED | changed))

    return run


@pytest.mark.parametrize("test", [True, False])
def test_a_missing_container_is_made_and_awaited(apply, test):
    host = Host()
    ret = apply(host, test)
    assert ret["result"] is (None if test else True)
    assert ret["changes"] == {"container": {"old": None, "new": "example.com/web:1"}}
    assert host["create"].called is host["wait_well"].called is not test


@pytest.mark.parametrize("test", [True, False])
def test_the_second_run_changes_nothing(apply, test):
    host = Host(existing(health="healthy"))
    ret = apply(host, test)
    assert (ret["result"], ret["changes"]) == (True, {})
    assert not host["create"].called
    assert not host["restart"].called


def test_one_that_has_stopped_is_started_and_not_made_anew(apply):
    host = Host(existing(status="exited"))
    assert apply(host)["result"] is True
    assert host["restart"].called
    assert not host["create"].called


def test_one_that_is_still_starting_is_awaited(apply):
    host = Host(existing(health="starting"))
    assert apply(host)["changes"] == {}
    host["wait_well"].assert_called_once()


def test_a_dry_run_before_there_is_docker_reports_what_will_be(apply):
    host = Host(answers=False)
    host["inspect"].side_effect = PlatformError("Docker does not answer")
    assert apply(host, test=True)["result"] is None
    assert apply(host)["result"] is False


def test_bad_input_is_refused_in_a_dry_run_too(apply):
    ret = apply(Host(), test=True, publish=["80:80"])
    assert ret["result"] is False
    assert "explicit address" in ret["comment"]


def test_every_argument_of_the_state_reaches_the_specification():
    read = inspect.getsource(containers)
    arguments = set(inspect.signature(state.running).parameters) - {"name", "timeout", "image"}
    assert not [name for name in arguments if f'"{name}"' not in read]


@pytest.mark.parametrize("test", [True, False])
def test_what_is_watched_restarts_it(monkeypatch, test):
    host = Host()
    monkeypatch.setattr(state, "__salt__", host.calls, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    assert state.mod_watch("web", sfun="running", **WANTED)["result"] is (None if test else True)
    assert host["restart"].called is not test


def test_another_network_of_that_name_is_refused(monkeypatch):
    host = Host()
    host["network"].return_value = {"Options": {}, "IPAM": {"Config": []}}
    monkeypatch.setattr(state, "__salt__", host.calls, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    ret = state.network_present("ai-platform", "br-platform")
    assert ret["result"] is False
    assert "expected: {'bridge': 'br-platform'}; actual: {'bridge': None}" in ret["comment"]
    assert not host["create_network"].called


@pytest.mark.parametrize(
    ("made", "good"), [("br-platform", True), ("br-other", False), (None, False)], ids=["same", "another", "none"]
)
def test_a_network_that_another_phase_made_meanwhile_will_do(monkeypatch, made, good):
    engine = Mock()
    engine.create_network.side_effect = docker.errors.APIError("x", explanation="networks have same bridge name")
    options = {"Options": {"com.docker.network.bridge.name": made}, "IPAM": {"Config": []}}
    engine.inspect_network = Mock(return_value=options, side_effect=None if made else docker.errors.NotFound("none"))
    monkeypatch.setattr(module, "_engine", lambda: engine)
    if good:
        assert module.create_network("ai-platform", "br-platform")
    else:
        with pytest.raises(PlatformError, match="same bridge name"):
            module.create_network("ai-platform", "br-platform")


def test_a_container_of_before_is_not_made_anew_for_what_it_does_not_use():
    """What a container may have besides came later: one without it has the parts, and so the hashes, of before."""
    assert not {"labels", "gpus"} & parts().keys()
    assert set(parts()["limits"]) == {"memory_mib", "pids", "shm_mib", "nofile"}
    assert "StartInterval" not in parts(health={"test": "true"})["health"]


def test_what_a_container_may_have_besides():
    made = config(memory_reservation_mib=128, cpus=1.5, gpus="all", labels={"team": "a"}, restart="always")
    host = made["HostConfig"]
    assert (host["MemoryReservation"], host["NanoCpus"]) == (128 << 20, 1_500_000_000)
    assert host["DeviceRequests"][0]["Count"] == -1
    assert host["RestartPolicy"] == {"Name": "always"}
    assert made["Labels"]["team"] == "a"
    assert made["Labels"][containers.NAME_LABEL] == "web"
    assert config(gpus=2)["HostConfig"]["DeviceRequests"][0]["Count"] == 2


def test_one_that_starts_is_asked_by_the_state_where_the_engine_waits_a_whole_interval(monkeypatch):
    """Debian's engine makes the first check after a whole interval."""
    shown = {"Id": "1", "RestartCount": 0, "State": {"Status": "running", "Health": {"Status": "starting"}}}
    shown["Config"] = {"Healthcheck": {"Test": ["CMD", "ollama", "list"]}}
    asked = []

    def execute(name, argv):
        asked.append(argv)
        return {"retcode": int(len(asked) < 2)}

    monkeypatch.setattr(module, "inspect", lambda name: shown)
    monkeypatch.setattr(module, "execute", execute)
    assert module.wait_well("ollama", 5, ask=True)
    assert asked == [["ollama", "list"]] * 2


@pytest.fixture
def volume(monkeypatch, tmp_path):
    """A volume of the engine, kept in a folder of this test."""
    engine = Mock()
    engine.inspect_volume.return_value = {"Mountpoint": str(tmp_path), "Options": None}
    monkeypatch.setattr(volumes, "_engine", lambda: engine)
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    functions = {
        "platform_volume.inspect": volumes.inspect,
        "platform_volume.owner": volumes.owner,
        "platform_volume.create": volumes.create,
    }
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    return engine


def test_a_volume_that_is_there_and_its_users_is_left_alone(volume, tmp_path):
    owner = tmp_path.stat()
    ret = state.volume_present("models", owner.st_uid, owner.st_gid)
    assert (ret["result"], ret["changes"]) == (True, {})
    volume.create_volume.assert_not_called()


def test_a_volume_of_somebody_else_is_given_to_its_user_with_all_that_is_in_it(volume, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/blob").write_text("weights")
    given = []
    monkeypatch.setattr(
        volumes.os, "chown", lambda path, uid, gid, follow_symlinks: given.append((path.name, uid, gid))
    )
    ret = state.volume_present("models", 21003, 21003)
    assert ret["result"] is True
    assert ret["changes"]["owner"]["new"] == "21003:21003"
    assert set(given) == {(tmp_path.name, 21003, 21003), ("models", 21003, 21003), ("blob", 21003, 21003)}
    assert (tmp_path / "models/blob").read_text() == "weights"


def test_a_dry_run_makes_no_volume(volume, monkeypatch):
    monkeypatch.setattr(state, "__opts__", {"test": True}, raising=False)
    functions = {"platform_container.answers": lambda: True, "platform_volume.inspect": volumes.inspect}
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    volume.inspect_volume.side_effect = docker.errors.NotFound("none")
    ret = state.volume_present("models", 21003, 21003)
    assert (ret["result"], list(ret["changes"])) == (None, ["volume"])
    volume.create_volume.assert_not_called()


def test_a_volume_on_a_folder_of_the_host_is_looked_at_there(volume, tmp_path):
    volume.inspect_volume.return_value = {"Mountpoint": "/nowhere", "Options": {"device": str(tmp_path)}}
    assert volumes.folder("models") == str(tmp_path)
    volume.inspect_volume.return_value = {"Mountpoint": "/nowhere", "Options": None}
    with pytest.raises(PlatformError, match="not on this host"):
        volumes.folder("models")
