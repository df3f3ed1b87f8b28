"""Every state of the tree compiles for every host, on both families of systems, with the real pillar."""

from __future__ import annotations

import importlib.util
import itertools
import re
from dataclasses import asdict

import pytest
import salt.config
import salt.loader
import salt.state
import salt.template
from salt.exceptions import SaltRenderError
from salt.utils.templates import JINJA

from aiplatform import numa, phases, settings, slots
from tests.conftest import CHECKOUT
from tests.unit.sysfs_trees import Server

SPEC = importlib.util.spec_from_file_location("configure", CHECKOUT / "etc/configure.py")
configure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(configure)

MINIONS = ("ai_server", "nginx_proxy", "coredns_host")
COMMON = {
    "kernel": "Linux",
    "init": "systemd",
    "systemd": {"version": "252", "features": ""},
    "cpuarch": "x86_64",
    "osarch": "amd64",
    "num_cpus": 32,
    "mem_total": 262144,
    "virtual": "physical",
    "path": "/usr/sbin:/usr/bin",
    "pythonexecutable": "/opt/salt/bin/python",
    "saltversion": "3008.3",
}
SYSTEMS = {
    "Debian 12": COMMON
    | {"os": "Debian", "os_family": "Debian", "osrelease": "12", "osmajorrelease": 12, "oscodename": "bookworm"},
    "RHEL 9": COMMON
    | {"os": "Rocky", "os_family": "RedHat", "osrelease": "9.4", "osmajorrelease": 9, "oscodename": "Blue Onyx"},
}
# What Debian calls a package, and what the RHEL 9 family does. A package that is missing here was never looked up.
PACKAGES: dict[str, set[str]] = {
    "python3": {"python3.11"},
    "python3-venv": set(),  # part of python3.11
    "nftables": {"nftables"},
    "numactl": {"numactl"},
    "logrotate": {"logrotate"},
    "zstd": {"zstd"},
    "ca-certificates": {"ca-certificates"},
    "nginx": {"nginx"},
    "libnginx-mod-http-lua": {"nginx-mod-lua"},
    "lua-cjson": {"lua-cjson"},
    # The RHEL family has no engine of its own: Docker's repository.
    "docker.io": {"docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin"},
}
# Places that only one of the families has.
FOREIGN = {"Debian 12": r"/etc/(yum|dnf|sysconfig)|/etc/pki/ca-trust", "RHEL 9": r"/etc/apt|/etc/default|bookworm"}
# What the bootstrap adds to the grains for its own run.
ENROL = {"enrol": {"master": "192.0.2.10", "master_finger": "aa:bb"}}


def states_of_the_tree() -> list[str]:
    """The names, as ``state.apply`` takes them, of every SLS that runs on a host."""
    tree = CHECKOUT / "salt"
    paths = [path.relative_to(tree) for path in tree.glob("[!_]*/**/*.sls")]
    names = (".".join(path.with_suffix("").parts).removesuffix(".init") for path in paths)
    # The master renders these: the orchestrations, and the reactions to events.
    return sorted(name for name in names if name.split(".")[0] not in ("orch", "reactor"))


def whole(sls):
    """A part of a formula is rendered beside the formula that includes it."""
    formula = sls.split(".")[0]
    return [sls] if sls == formula or not (CHECKOUT / "salt" / formula / "init.sls").exists() else [formula, sls]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The options of a masterless minion of this checkout that writes into a folder of its own."""
    root = tmp_path_factory.mktemp("render")
    options = dict(salt.config.minion_config(None, role="minion"))
    options |= configure.fragments(CHECKOUT, root, [CHECKOUT / "pillar"])["masterless"]
    paths = {name: str(root / name) for name in ("pki_dir", "cachedir", "sock_dir", "extension_modules")}
    return options | paths | {"root_dir": str(root), "file_client": "local", "id": "render", "log_file": "/dev/null"}


@pytest.fixture(scope="module")
def pillars(options):
    """``{minion id: its pillar}``, as the external pillar makes it."""
    compiled = {name: settings.compile_pillar(options | {"id": name, "grains": {}}, name) for name in MINIONS}
    for name, pillar in compiled.items():
        assert not pillar.get("_errors"), f"{name}: {pillar['_errors']}"
        assert pillar["roles"], f"{name} has no role"
    return compiled


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The processors of the server that the default pillar is for."""
    return numa.topology(Server(sockets=2).build(tmp_path_factory.mktemp("sysfs")))


@pytest.fixture(scope="module")
def compile_state(options, pillars, server):
    """Compile one SLS for one minion and system; the result is kept for the next test that asks for it."""
    kept: dict[tuple[str, str], salt.state.HighState] = {}
    chunks: dict[tuple[str, str, str], list[dict]] = {}

    def replace_host(functions, minion):
        """What a state asks about its host while it is rendered: a server with two nodes, and no Vault."""
        # In one process the modules of all minions are the same, and have the options of the one loaded last.
        functions["vault_server.is_host"] = lambda: minion == "ai_server"
        functions["vault.get_server_config"] = lambda: {"verify": "PEM"}
        functions["vault.read_secret"] = lambda path, key=None, **kwargs: f"secret of {path}"
        functions["platform_secret.optional"] = lambda path, key: f"secret of {path}"
        functions["numa.plan"] = lambda: {
            name: asdict(binding)
            for name, binding in numa.plan(server, pillars["ai_server"]["ollama"]["instances"]).items()
        }

    def compiler(minion, system):
        if (minion, system) not in kept:
            grains = SYSTEMS[system] | {"id": minion, "host": minion, "fqdn": minion, "nodename": minion} | ENROL
            pillar = pillars[minion]
            opts = options | {"id": minion, "grains": grains, "pillar": pillar}
            kept[minion, system] = salt.state.HighState(opts, initial_pillar=pillar)
            replace_host(kept[minion, system].state.functions, minion)
        kept[minion, system].building_highstate.clear()
        return kept[minion, system]

    def compile_anew(sls, minion, system):
        high_state = compiler(minion, system)
        high, errors = high_state.render_highstate({"base": whole(sls)})
        assert not errors, "\n".join(errors)
        low, errors = high_state.state.compile_high_data(*_resolved(high_state, high))
        assert not errors, "\n".join(errors)
        called = {f"{chunk['state']}.{chunk['fun']}" for chunk in low}
        # Which package manager Salt finds depends on the machine that this runs on.
        called = {name for name in called if not name.startswith(("pkg.", "pkgrepo."))}
        unknown = called - set(high_state.state.states)
        assert not unknown, f"no such state function: {unknown}"
        return low

    def compile_one(sls, minion, system):
        if (sls, minion, system) not in chunks:
            chunks[sls, minion, system] = compile_anew(sls, minion, system)
        return chunks[sls, minion, system]

    compile_one.anew = compile_anew
    compile_one.functions = lambda minion, system: compiler(minion, system).state.functions
    yield compile_one
    for high_state in kept.values():
        high_state.destroy()


def _resolved(high_state, high):
    """Apply extensions and requisites, as ``state.apply`` does before it runs anything."""
    high, errors = high_state.state.reconcile_extend(high)
    errors += high_state.state.verify_high(high)
    assert not errors, "\n".join(errors)
    high, errors = high_state.state.requisite_in(high)
    assert not errors, "\n".join(errors)
    return (high,)


CASES = list(itertools.product(states_of_the_tree(), MINIONS, SYSTEMS))


@pytest.mark.parametrize(("sls", "minion", "system"), CASES)
def test_a_state_compiles(compile_state, sls, minion, system):
    """No undefined name, no unknown requisite or state function, no id twice."""
    compile_state(sls, minion, system)


def templates(low):
    """``(path, context)`` of the files of compiled states that Jinja fills in."""
    for chunk in low:
        if chunk.get("template") == "jinja" and str(chunk.get("source", "")).startswith("salt://"):
            context = [chunk.get("defaults") or {}, chunk.get("context") or {}]
            parts = [part if isinstance(part, list) else [part] for part in context]
            path = CHECKOUT / "salt" / chunk["source"].removeprefix("salt://")
            yield path, {key: value for part in parts for row in part for key, value in row.items()}


@pytest.mark.parametrize(("sls", "minion", "system"), CASES)
def test_the_files_of_a_state_render(compile_state, options, pillars, sls, minion, system):
    low = compile_state(sls, minion, system)
    for path, context in templates(low):
        rendered = JINJA(
            str(path),
            to_str=True,
            context=context,
            opts=options,
            salt=compile_state.functions(minion, system),
            pillar=pillars[minion],
            grains=SYSTEMS[system] | {"id": minion},
            saltenv="base",
        )
        assert rendered["result"], f"{path}: {rendered['data']}"
        assert "None" not in rendered["data"].split(), f"{path} holds the word None:\n{rendered['data']}"


def packages(low):
    """The packages that compiled states install."""
    installs = [chunk for chunk in low if chunk["state"] == "pkg" and chunk["fun"] in ("installed", "latest")]
    return {name for chunk in installs for name in chunk.get("pkgs") or [chunk["name"]]}


@pytest.mark.parametrize("sls", states_of_the_tree())
def test_packages_have_the_name_that_the_family_gives_them(compile_state, sls):
    wanted = {name: packages(compile_state(sls, "ai_server", name)) for name in SYSTEMS}
    unknown = wanted["Debian 12"] - PACKAGES.keys()
    assert not unknown, f"look up what the RHEL 9 family calls {unknown}, and add it to PACKAGES"
    assert wanted["RHEL 9"] == set().union(*(PACKAGES[name] for name in wanted["Debian 12"]))


@pytest.mark.parametrize(("sls", "minion", "system"), CASES)
def test_no_path_of_the_other_family(compile_state, sls, minion, system):
    found = re.findall(FOREIGN[system], repr(compile_state(sls, minion, system)))
    assert not found


@pytest.mark.parametrize(("sls", "minion", "system"), CASES)
def test_no_secret_is_rendered(compile_state, sls, minion, system):
    """Salt keeps what it renders: in a minion's cache, and as the answer of ``state.show_sls`` in the job cache."""
    assert "secret of" not in repr(compile_state(sls, minion, system))


@pytest.mark.parametrize("sls", ["postgres", "keycloak", "qdrant", "openwebui", "openclaw"])
def test_what_there_is_once_is_made_on_the_host_of_vault_alone(compile_state, sls):
    assert [chunk["fun"] for chunk in compile_state(sls, "coredns_host", "Debian 12")] == ["nop"]
    assert len(compile_state(sls, "ai_server", "Debian 12")) > 1


def test_the_host_of_vault_knows_the_public_names(compile_state, pillars):
    low = compile_state("vault", "ai_server", "Debian 12")
    table = next(chunk["contents"] for chunk in low if chunk["name"] == "/etc/hosts")
    assert f"192.0.2.30 idm.{pillars['ai_server']['platform']['domain']} " in table


def makes_what_may_be_there_once(chunk):
    """Whether a state fails where another process makes the same in the same moment: ``mkdir``, Docker's networks."""
    folder = chunk["state"] == "file" and (chunk["fun"] == "directory" or chunk.get("makedirs"))
    return folder or chunk["fun"] == "network_present"


def test_what_phases_side_by_side_share_is_tried_again(compile_state):
    graph = phases.load(CHECKOUT / "salt/orch/phases.yaml")
    after = {name: phases.with_dependents(graph, [name]) for name in graph}
    states: dict[str, dict[tuple[str, str], dict]] = {}
    for name, phase in graph.items():
        host = next(minion for minion in MINIONS if minion in phase.roles)
        low = [chunk for kind, sls in phase.steps if kind == "state" for chunk in compile_state(sls, host, "Debian 12")]
        once = filter(makes_what_may_be_there_once, low)
        states[name] = {(chunk["__id__"], chunk["state"]): chunk for chunk in once}
    pairs = [(one, other) for one, other in itertools.combinations(graph, 2) if other not in after[one]]
    shared = {key for one, other in pairs for key in states[one].keys() & states[other].keys()}
    assert ("containers-folder", "file") in shared
    untried = [key for rows in states.values() for key, chunk in rows.items() if key in shared and "retry" not in chunk]
    assert untried == []


def test_there_is_something_to_compile():
    assert "salt_minion" in states_of_the_tree()


def test_the_names_of_the_two_families_differ_where_they_should(compile_state):
    debian, rhel = (compile_state("salt_minion", "ai_server", system) for system in SYSTEMS)
    interpreters = [next(chunk["python"] for chunk in low if chunk["state"] == "salt_venv") for low in (debian, rhel)]
    assert interpreters == ["python3", "python3.11"]


def test_the_bootstrap_writes_id_master_and_fingerprint(compile_state):
    low = compile_state("salt_minion.enrol", "ai_server", "Debian 12")
    written = next(chunk for chunk in low if chunk["name"] == "/etc/salt/minion.d/host.conf")
    assert written["dataset"] == [{"id": "ai_server"}, {"master": "192.0.2.10"}, {"master_finger": "aa:bb"}] or written[
        "dataset"
    ] == {"id": "ai_server", "master": "192.0.2.10", "master_finger": "aa:bb"}


def test_the_warmup_units_are_those_that_are_restarted_and_retired(compile_state, pillars):
    low = compile_state("models", "ai_server", "Debian 12")
    running = {chunk["name"] for chunk in low if chunk["fun"] == "warmed"}
    instances = pillars["ai_server"]["ollama"]["instances"].values()
    assert running == {slots.warmup_unit(instance["unit"]) for instance in instances}


def test_an_undefined_name_is_refused(options, pillars, tmp_path):
    """The tests above rely on it."""
    path = tmp_path / "bad.sls"
    path.write_text("{{ pillar.platform.domian }}:\n  test.nop\n")
    renderers = salt.loader.render(options | {"pillar": pillars["ai_server"], "grains": {}}, {})
    with pytest.raises(SaltRenderError, match="domian"):
        salt.template.compile_template(str(path), renderers, "jinja|yaml", [], [])


def test_a_native_port_is_looked_at_first_and_containers_go_before_an_instance_starts(compile_state):
    low = compile_state("ollama", "ai_server", "Debian 12")
    first = low[:2]
    assert {(row["state"], row["fun"], row["name"]) for row in first} == {
        ("ollama", "port_is_free", "node0"),
        ("ollama", "port_is_free", "node1"),
    }
    assert all(row["failhard"] for row in first)
    ids = [f"{row['__id__']} {row['state']}" for row in low]
    gone = ids.index("ollama-containers-gone ollama_container")
    services = [row for row in low if row["state"] == "service" and row["__id__"] in ("ollama-node0", "ollama-node1")]
    assert len(services) == 2
    assert all({"ollama_container": "ollama-containers-gone"} in row["require"] for row in services)
    assert all(gone < ids.index(f"{row['__id__']} service") for row in services)
    ready = {row["name"]: row["unit"] for row in low if (row["state"], row["fun"]) == ("ollama", "ready")}
    assert ready == {"node1": "ollama.service", "node0": "ollama-node0.service"}


@pytest.mark.parametrize("vendors", [[], ["amd"], ["nvidia"]])
def test_where_a_gpu_is_the_user_is_in_its_groups_and_the_units_let_it_in(compile_state, monkeypatch, vendors):
    functions = compile_state.functions("ai_server", "Debian 12")
    monkeypatch.setitem(functions, "gpu.used", lambda: bool(vendors))
    monkeypatch.setitem(functions, "gpu.found", lambda: vendors)
    low = compile_state.anew("ollama", "ai_server", "Debian 12")
    (user,) = [chunk for chunk in low if (chunk["state"], chunk["fun"]) == ("user", "present")]
    assert user["optional_groups"] == (["render", "video"] if vendors else [])
    units = {path.name: context for path, context in templates(low)}["ollama.service"]
    assert (units["gpu"], units["nvidia"]) == (bool(vendors), vendors == ["nvidia"])
