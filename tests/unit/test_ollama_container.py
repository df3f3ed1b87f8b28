"""Ollama in Docker: what a profile becomes, what pillar must not say, and what goes wrong with ports and pulls."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from _modules import ollama_container as module
from _modules import platform_container
from _states import ollama as native_state
from _states import ollama_container as state
from aiplatform import (
    containers,
    firewall,
    instances,
    ollama,
    ollama_container,
    ollama_places,
    port_holders,
    schema,
    services,
    settings,
)
from aiplatform.errors import NotFoundError, PlatformError
from tests.conftest import CHECKOUT

SITE = {"platform": {"hosts": {"single": {"address": "192.0.2.5", "roles": []}}}}


def effective(**written):
    return settings.effective(SITE | {"ollama": {"mode": "container"} | written}, CHECKOUT / "salt")


def problems(**written):
    pillar = SITE | {"ollama": {"mode": "container"} | written}
    merged = settings.effective(pillar, CHECKOUT / "salt")
    tree = CHECKOUT / "salt"
    found = schema.problems(merged, tree, written=pillar)
    found = found or ollama_container.problems(merged, settings.defaults(tree))
    return [str(problem) for problem in found]


def arguments(name="local", drivers=(), cpus=32, **written):
    return ollama_container.arguments(effective(run=[name], **written), name, list(drivers), cpus)


def engine(**more):
    told = arguments(**more)
    wanted = {key: value for key, value in told.items() if key not in ("image", "timeout") and value is not None}
    parts = containers.specification(effective()["containers"], "ollama", told["image"], **wanted)
    return containers.engine_config("ollama", parts, {})


def test_two_words_of_pillar_are_enough():
    assert problems() == []
    assert list(ollama_container.profiles(effective())) == ["local"]


def test_every_profile_that_is_shipped_is_allowed_beside_the_others():
    assert problems(run=["local", "dev", "prod", "service"]) == []
    rows = ollama_container.profiles(effective(run=["local", "dev", "prod", "service"])).values()
    for key in ("port", "name", "volume"):
        assert len({row[key] for row in rows}) == 4
    # The native instances' own; `local` takes the place of the first one on a machine that has none.
    assert not {row["port"] for row in rows} & {11435}


def test_what_docker_is_told():
    made = engine(profiles={"local": {"models_folder": "/srv/ready", "origins": ["https://a.example.com"]}})
    host = made["HostConfig"]
    assert made["User"] == "21003:21003"
    assert (host["Memory"], host["MemoryReservation"]) == (8192 << 20, 4096 << 20)
    assert host["PortBindings"] == {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": "11434"}]}
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert host["RestartPolicy"] == {"Name": "unless-stopped"}
    assert host["ReadonlyRootfs"] is True
    assert {mount["Target"]: (mount["Source"], mount["ReadOnly"]) for mount in host["Mounts"]} == {
        "/var/lib/ollama/.ollama": ("ollama_data", False),
        "/models": ("/srv/ready", True),
    }
    assert made["Healthcheck"]["Test"] == ["CMD", "ollama", "list"]
    assert made["Labels"]["monitoring.enable"] == "true"
    assert "DeviceRequests" not in host
    assert "NanoCpus" not in host
    environment = dict(entry.split("=", 1) for entry in made["Env"])
    assert environment["OLLAMA_NUM_PARALLEL"] == "2"
    assert environment["OLLAMA_MAX_LOADED_MODELS"] == "2"
    assert environment["OLLAMA_ORIGINS"] == "https://a.example.com"
    assert environment["OLLAMA_KEEP_ALIVE"] == "300"
    assert environment["OLLAMA_MODELS"].startswith("/var/lib/ollama/.ollama")
    assert "OLLAMA_PORT" not in environment


def test_a_limit_of_cpus_is_never_above_what_there_is():
    assert engine(name="dev")["HostConfig"]["NanoCpus"] == 4 * 10**9
    assert engine(name="dev", cpus=2)["HostConfig"]["NanoCpus"] == 2 * 10**9


@pytest.mark.parametrize(
    ("wanted", "drivers", "expected"),
    [
        (False, ["nvidia"], None),
        ("auto", ["nvidia"], "all"),
        ("auto", ["amd"], None),
        ("auto", [], None),
        (True, ["nvidia"], "all"),
    ],
)
def test_a_gpu_is_asked_for_only_where_its_driver_is(wanted, drivers, expected):
    assert ollama_container.gpus(wanted, drivers) == expected


def test_a_gpu_that_is_asked_for_reaches_docker():
    request = engine(name="prod", drivers=["nvidia"])["HostConfig"]["DeviceRequests"]
    assert request == [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]


def test_a_gpu_that_is_demanded_and_missing_is_refused():
    with pytest.raises(PlatformError, match=r"ollama\.profiles\.prod\.gpu.*nvidia-container-toolkit"):
        ollama_container.demand_gpu("prod", True, ["amd"])
    ollama_container.demand_gpu("prod", True, ["nvidia"])
    ollama_container.demand_gpu("prod", "auto", [])


def test_the_image_is_ollamas_version_unless_it_is_named():
    shipped = effective()["ollama"]["container"]["digest"]
    assert arguments()["image"] == f"docker.io/ollama/ollama@{shipped}"
    assert (
        arguments(container={"digest": None})["image"] == f"docker.io/ollama/ollama:{effective()['ollama']['version']}"
    )
    pinned = arguments(container={"digest": "sha256:" + "a" * 64})
    assert pinned["image"].endswith("@sha256:" + "a" * 64)


@pytest.mark.parametrize(
    "written",
    [
        {"version": "0.18.0"},
        {"container": {"version": "0.18.0"}},
        {"profiles": {"local": {"version": "0.17.4-rocm"}}},
        {"profiles": {"local": {"image": "docker.io/acme/ollama"}}},
    ],
)
def test_another_image_wants_another_digest(written):
    (told,) = problems(**written)
    assert told.startswith("ollama.profiles.local.digest: is 'sha256:")
    assert "expected that of docker.io/" in told
    container = written.get("container", {})
    for digest in (None, f"sha256:{'a' * 64}"):
        assert problems(**written | {"container": container | {"digest": digest}}) == []


def test_natively_the_images_digest_is_nobodys_business():
    assert problems(mode="native", version="0.18.0") == []


@pytest.mark.parametrize(
    ("written", "key", "words"),
    [
        ({"run": ["lokal"]}, "ollama.run", "did you mean local"),
        ({"run": ["local", "dev"], "profiles": {"dev": {"port": 11434}}}, "ollama.profiles.dev.port", "profile local"),
        ({"run": ["local", "dev"], "profiles": {"dev": {"name": "ollama"}}}, "ollama.profiles.dev.name", "of its own"),
        (
            {"run": ["local", "dev"], "profiles": {"dev": {"volume": "ollama_data"}}},
            "ollama.profiles.dev.volume",
            "of its own",
        ),
        ({"profiles": {"local": {"address": "192.0.2.5"}}}, "ollama.profiles.local.sources", "no authentication"),
        ({"profiles": {"local": {"address": "0.0.0.0"}}}, "ollama.profiles.local.sources", "no authentication"),
        ({"profiles": {"local": {"sources": ["192.0.2.0/24"]}}}, "ollama.profiles.local.address", "127.0.0.1"),
        ({"profiles": {"local": {"memory_reservation_mib": 9000}}}, "memory_reservation_mib", "at most"),
        ({"run": ["mine"], "profiles": {"mine": {}}}, "ollama.profiles.mine.port", "the port"),
        ({"profiles": {"local": {"models": ["llama3.2"]}}}, "ollama.profiles.local.models", "its tag"),
        (
            {"profiles": {"local": {"environment": {"OLLAMA_PORT": "1"}}}},
            "ollama.profiles.local.environment",
            "OLLAMA_PORT",
        ),
        ({"profiles": {"local": {"memory": 1}}}, "ollama.profiles.local", "memory"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(written, key, words):
    told = "\n".join(problems(**written))
    assert key in told
    assert words in told


@pytest.mark.parametrize("where", ["environment", "container.environment", "profiles.local.environment"])
@pytest.mark.parametrize(
    "name",
    ["OLLAMA_FLASH_ATTENTION", "OLLAMA_LOAD_TIMEOUT", "OLLAMA_NUM_CTX", "OLLAMA_PORT", "OLLAMA_NUM_THREADS", "HOME"],
)
def test_no_variable_is_ignored_wherever_it_is_written(where, name):
    told = {name: "1"}
    for key in reversed(where.split(".")):
        told = {key: told}
    (problem,) = problems(**told)
    assert problem.startswith(f"ollama.{where}: is '{name}', expected ")


def test_natively_the_variables_of_what_has_no_setting_there_are_allowed():
    variables = {"OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_ORIGINS": "https://a.example.com", "OLLAMA_DEBUG": "1"}
    assert problems(mode="native", environment=variables) == []
    refused = "\n".join(problems(container={"environment": variables}))
    assert [name in refused for name in variables] == [True, True, False]


def test_natively_the_profiles_are_nobodys_business():
    assert problems(mode="native", run=["lokal"]) == []
    assert ollama_container.rows(effective(mode="native")) == []


def test_the_firewall_lets_in_whom_pillar_names_and_nobody_else():
    def rules(**profile):
        merged = effective(profiles={"local": profile})
        return firewall.forward_rules(merged | {"services": services.expand(merged)}, "single")

    assert not any("11434" in rule for rule in rules())
    opened = [rule for rule in rules(address="192.0.2.5", sources=["192.0.2.64/26"]) if "11434" in rule]
    assert len(opened) == 1
    assert opened[0].startswith("ip saddr { 192.0.2.64/26 }")
    assert rules()[-1].endswith('drop comment "containers"')


def test_urls_for_the_host_and_for_containers():
    merged = effective(profiles={"local": {"address": "0.0.0.0", "sources": ["192.0.2.0/24"], "port": 8434}})
    text = ollama_places.env_text(ollama_places.place(merged))
    assert "OLLAMA_BASE_URL=http://ollama:11434\nOLLAMA_HOST_BASE_URL=http://127.0.0.1:8434\n" in text
    assert instances.resolve(merged, "local") == "http://127.0.0.1:8434"
    with pytest.raises(NotFoundError, match="no profile 'node1'"):
        instances.resolve(merged, "node1")


@pytest.fixture
def configure_loader_modules():
    pillar = effective(profiles={"local": {"models": ["a:1", "B:1"], "pull_timeout": 5}})
    return {
        module: {
            "__pillar__": pillar,
            "__salt__": {"event.send": Mock()},
            "__opts__": {"file_client": "remote"},
            "__grains__": {"num_cpus": 2},
        },
        state: {"__salt__": {}, "__opts__": {"test": False}},
    }


@pytest.fixture
def server(httpserver, monkeypatch):
    """A programmed Ollama behind the profile."""
    monkeypatch.setattr(module.described, "host_url", lambda row: httpserver.url_for("").rstrip("/"))
    return httpserver


@pytest.mark.usefixtures("configure_loader_modules")
class TestReadiness:
    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"digest": None}, "0.17.4"),
            ({"digest": None, "version": "0.18.0"}, "0.18.0"),
            ({"digest": None, "version": "latest"}, ""),
            ({"digest": None, "version": "0.17.4-rocm"}, ""),
            ({"digest": "sha256:" + "a" * 64}, ""),  # of whatever release
        ],
    )
    def test_a_version_is_demanded_where_the_images_name_tells_one(self, monkeypatch, told, expected):
        monkeypatch.setattr(module, "__pillar__", effective(version="0.17.4", profiles={"local": told}), raising=False)
        assert module.readiness("local")["version"] == expected

    def test_an_image_without_a_version_passes_and_silence_is_told_with_docker_logs(self, server, monkeypatch):
        monkeypatch.setitem(module.__pillar__["ollama"]["profiles"]["local"], "version", "latest")
        monkeypatch.setattr(native_state, "__opts__", {"test": False}, raising=False)
        server.expect_request("/api/version").respond_with_json({"version": "9.9.9"})
        server.expect_request("/api/tags").respond_with_json({"models": []})
        told = module.readiness("local") | {"timeout": 0.2}
        assert native_state.ready("local", **told)["result"] is True
        silent = native_state.ready("local", **told | {"url": "http://127.0.0.1:9"})
        assert silent["result"] is False
        assert "docker logs --tail 100 ollama" in silent["comment"]


@pytest.mark.usefixtures("configure_loader_modules")
class TestModels:
    def test_what_the_store_has_under_another_spelling_is_not_missing(self, server):
        server.expect_request("/api/tags").respond_with_json({"models": [{"name": "b:1"}]})
        assert module.missing("local") == ["a:1"]

    def test_before_it_answers_all_are_missing(self, monkeypatch):
        monkeypatch.setattr(module.described, "host_url", lambda row: "http://127.0.0.1:9")
        assert module.missing("local") == ["a:1", "B:1"]

    def test_a_pull_that_breaks_off_is_carried_on_with(self, server):
        server.expect_ordered_request("/api/pull").respond_with_data('{"status": "pulling"}\n')
        server.expect_ordered_request("/api/pull").respond_with_data('{"status": "success"}\n')
        assert module.pull("local", "a:1")["status"] == "success"
        told = [call.args[1]["status"] for call in module.__salt__["event.send"].call_args_list]
        assert told == ["pulling", "success"]

    def test_a_pull_that_never_succeeds_ends_and_says_so(self, server):
        server.expect_request("/api/pull").respond_with_data('{"error": "no space left on device"}\n')
        with pytest.raises(PlatformError, match=r"after 5 attempts.*no space left"):
            module.pull("local", "a:1")
        assert len(server.log) == module.PULL_ATTEMPTS

    def test_a_model_that_is_not_there_is_not_asked_for_again(self, server):
        server.expect_request("/api/pull").respond_with_data('{"error": "pull model manifest: file does not exist"}\n')
        with pytest.raises(ollama.ModelNotFound):
            module.pull("local", "a:1")
        assert len(server.log) == 1

    def test_a_silent_pull_ends_in_time(self, server, hush, monkeypatch):
        monkeypatch.setitem(module.__pillar__["ollama"]["profiles"]["local"], "pull_timeout", 0.4)
        server.expect_request("/api/pull").respond_with_handler(lambda request: hush())
        with pytest.raises(PlatformError, match=r"not pulled after \d attempts in at most 0\.4 s"):
            module.pull("local", "a:1")

    def test_one_failure_fails_the_state(self, monkeypatch):
        pull = Mock(side_effect=PlatformError("no way"))
        functions = {"ollama_container.missing": lambda name: ["a:1"], "ollama_container.pull": pull}
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        ret = state.models_present("local")
        assert ret["result"] is False
        assert "no way" in ret["comment"]

    def test_a_dry_run_pulls_nothing(self, monkeypatch):
        monkeypatch.setattr(state, "__opts__", {"test": True}, raising=False)
        functions = {"ollama_container.missing": lambda name: ["a:1"]}
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        ret = state.models_present("local")
        assert (ret["result"], list(ret["changes"])) == (None, ["a:1"])

    @pytest.mark.parametrize("test", [True, False])
    def test_a_taken_port_fails_the_state_in_a_dry_run_too(self, monkeypatch, test):
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        functions = {
            "ollama_container.port_holders_of": lambda name: ["ollama (pid 7) of ollama.service on :::11434"],
            "ollama_container.profiles": lambda: {"local": {"port": 11434}},
        }
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        ret = state.port_is_free("local")
        assert ret["result"] is False
        assert "ollama.service" in ret["comment"]
        assert "nothing was changed" in ret["comment"]


def shown(name, label, port, address="127.0.0.1"):
    """A running container, as the engine lists it."""
    ports = [
        {"IP": address, "PrivatePort": 11434, "PublicPort": port, "Type": "tcp"},
        {"PrivatePort": 1, "Type": "tcp"},
    ]
    return {"Names": [f"/{name}"], "Labels": {ollama_container.LABEL: label} if label else {}, "Ports": ports}


@pytest.fixture
def docker(configure_loader_modules, monkeypatch):
    """``docker(rows, **ollama)``: the engine has these containers, and pillar says this."""

    def there(*rows, **written):
        def listed(all=False, filters=None):
            return [row for row in rows if not filters or filters["label"] in row["Labels"]]

        names = ("publishers", "labelled")
        functions = {f"platform_container.{name}": getattr(platform_container, name) for name in names}
        functions["platform_container.answers"] = lambda: True
        monkeypatch.setattr(platform_container, "_engine", lambda: Mock(containers=listed))
        monkeypatch.setattr(module, "__salt__", functions, raising=False)
        monkeypatch.setattr(module, "__pillar__", effective(**written), raising=False)
        proxies = {(entry["IP"], entry["PublicPort"]) for row in rows for entry in row["Ports"] if "IP" in entry}
        monkeypatch.setattr(
            port_holders,
            "holders",
            lambda port, address: [
                port_holders.Holder(where, port, 9, port_holders.DOCKER_PROXY, "docker.service")
                for where, published in proxies
                if published == port and where in (address, "0.0.0.0")
            ],
        )

    return there


class TestPorts:
    def test_a_profile_takes_over_the_port_of_one_that_goes(self, docker):
        docker(shown("ollama", "local", 11434), run=["team"], profiles={"team": {"port": 11434}})
        assert module.port_holders_of("team") == []
        assert module.others() == {"ollama": "local"}

    def test_two_profiles_swap_their_ports(self, docker):
        there = (shown("ollama", "local", 11434), shown("ollama-dev", "dev", 11436))
        docker(*there, run=["local", "dev"], profiles={"local": {"port": 11436}, "dev": {"port": 11434}})
        assert (module.port_holders_of("local"), module.port_holders_of("dev")) == ([], [])
        assert module.others() == {"ollama": "local", "ollama-dev": "dev"}

    def test_one_that_only_leaves_its_port_is_not_removed_before_its_successor_is_made(self, docker):
        docker(shown("ollama", "local", 11434), profiles={"local": {"port": 11440}})
        assert module.port_holders_of("local") == []
        assert module.others() == {}

    def test_a_strangers_container_is_none_of_those(self, docker):
        docker(shown("web", "", 11434))
        assert module.port_holders_of("local") == ["container web"]
        assert module.others() == {}

    def test_a_container_on_another_address_is_in_nobodys_way(self, docker):
        docker(shown("web", "", 11434, "192.0.2.9"))
        assert module.port_holders_of("local") == []
        docker(shown("web", "", 11434, "0.0.0.0"))
        assert module.port_holders_of("local") == ["container web"]

    def test_natively_all_that_the_formula_made_go_and_nobody_elses(self, docker):
        docker(shown("ollama", "local", 11434), shown("web", "", 11435), mode="native", run=["there-is-none"])
        assert module.others() == {"ollama": "local"}

    def test_where_no_docker_answers_it_is_asked_for_nothing(self, monkeypatch):
        monkeypatch.setattr(module, "__pillar__", effective(mode="native"), raising=False)
        monkeypatch.setattr(module, "__salt__", {"platform_container.answers": lambda: False}, raising=False)
        assert module.others() == {}

    @pytest.mark.parametrize("test", [True, False])
    def test_a_dry_run_says_which_containers_go_and_lets_them(self, monkeypatch, test):
        remove = Mock()
        functions = {"ollama_container.others": lambda: {"ollama": "local"}, "platform_container.remove": remove}
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        ret = state.no_others("retired")
        assert (ret["result"], ret["changes"]) == (None if test else True, {"ollama": {"old": "present", "new": None}})
        assert [call.args for call in remove.mock_calls] == ([] if test else [("ollama",)])
