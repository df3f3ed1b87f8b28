"""Ollama in Docker: one machine with an engine and Salt, no master."""

from __future__ import annotations

import json
import subprocess

import pytest
import requests

from lab import artifacts
from tests.lab.conftest import SPARE, Host

REGISTRY = "10.89.77.10:5000"
IMAGE = f"{REGISTRY}/ollama/ollama"
MODEL = f"{REGISTRY}/library/gemma3-270m:q4_k_m"
SMALL = f"{REGISTRY}/library/noise:1"
SALT = "opt usr/local/bin"
TREE = "/srv/ai-platform"
PILLAR = "/srv/pillar"


class Machine:
    """The host, with the commands that a person types there."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.run = host.run
        self.address = SPARE.address

    def pillar(self, **ollama) -> None:
        """Write the site's pillar; what is said of Ollama is added to it. The site's image is not upstream's."""
        shown = self.run(["cat", f"{PILLAR}/base.json"], check=False).stdout
        base = json.loads(shown) if shown else {}
        text = json.dumps(base | {"ollama": {"mode": "container", "container": {"digest": None}} | ollama})
        self.run(["sh", "-c", f'printf %s "$1" > {PILLAR}/site.sls', "sh", text])

    def call(self, *argv: str, check: bool = True) -> tuple[int, dict | list | str]:
        """``salt-call argv`` in the checkout; exit code and data."""
        done = self.run(["sh", "-c", f'cd {TREE} && exec salt-call --out=json "$@"', "sh", *argv], 400, check)
        try:
            data = json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stdout + done.stderr
        return done.returncode, data["local"]

    def apply(self, *argv: str, check: bool = True) -> dict:
        """``state.apply ollama``; the states by their id and function."""
        code, states = self.call("state.apply", "ollama", *argv, check=check)
        assert check is False or code == 0
        return {f"{row['__id__']} {key.split('_|-')[0]}.{key.rsplit('-', 1)[1]}": row for key, row in states.items()}

    def inspect(self, name: str = "ollama") -> dict:
        """The container, as Docker shows it."""
        return self.host.json(["docker", "inspect", name])[0]

    def digests(self, port: int = 11434) -> dict[str, str]:
        """The models that answer on a port, with their digests."""
        rows = self.host.json(f"curl -sS --retry 20 --retry-connrefused --retry-delay 1 127.0.0.1:{port}/api/tags")
        return {row["name"]: row["digest"] for row in rows["models"]}


def changes(states: dict) -> dict:
    """What changed or failed."""
    return {key: row["changes"] for key, row in states.items() if row["changes"] or row["result"] is not True}


@pytest.fixture(scope="module")
def machine(bare):
    """The bare host with an engine, Salt of the lab's build and this checkout: what a developer has to begin with."""
    source, target = Host("coredns_host").container, bare.container
    copy = f"docker exec {source} tar -C / -cf - {SALT} | docker exec -i {target} tar -C / -xf -"
    subprocess.run(["bash", "-o", "pipefail", "-c", copy], check=True, timeout=120)
    bare.run(f"mkdir -p {TREE} {PILLAR}")
    tree = f"docker exec ai-lab-salt_master tar -C {TREE} -cf - . | docker exec -i {target} tar -C {TREE} -xf -"
    subprocess.run(["bash", "-o", "pipefail", "-c", tree], check=True, timeout=120)
    bare.run(f"rm -rf {TREE}/etc/*/*.d && cd {TREE} && python3 etc/configure.py --pillar {PILLAR}")
    made = Machine(bare)
    base = {
        "containers": {"registry": REGISTRY},
        "docker": {"daemon": {"insecure-registries": [REGISTRY]}},
        "models": {"insecure_registries": [REGISTRY]},
    }
    bare.run(["sh", "-c", f'printf %s "$1" > {PILLAR}/base.json', "sh", json.dumps(base)])
    bare.run(f"""printf 'base:\\n  "*": [site]\\n' > {PILLAR}/top.sls""")
    return made


def local(**more):
    return {"memory_mib": 1024, "models": [MODEL]} | more


@pytest.fixture
def served(machine):
    """The profile ``local`` as a test expects it at its start."""
    machine.pillar(profiles={"local": local()})
    machine.apply()
    return machine


def test_one_command_from_nothing_to_a_model_that_answers(machine):
    machine.pillar(profiles={"local": local()})
    foreseen = machine.apply("test=True")
    assert machine.run("docker ps -q", check=False).stdout == ""
    made = machine.apply()
    assert {key for key, row in foreseen.items() if row["result"] is None} >= set(changes(made)) - {
        "firewall-service service.running"
    }
    assert MODEL in machine.digests()
    assert changes(machine.apply()) == {}
    _, answer = machine.call("ollama.run", MODEL, "Say hello.", "num_predict=8", "temperature=0")
    assert answer.strip()


def test_the_container_is_what_pillar_says(served):
    shown = served.inspect()
    host = shown["HostConfig"]
    assert shown["Config"]["User"] == "21003:21003"
    assert (host["Memory"], host["MemoryReservation"]) == (1024 << 20, 512 << 20)
    assert host["ReadonlyRootfs"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["PortBindings"] == {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": "11434"}]}
    assert not host["DeviceRequests"]
    assert shown["Config"]["Healthcheck"]["Test"] == ["CMD", "ollama", "list"]
    assert shown["Config"]["Labels"]["com.docker.compose.service"] == "ollama"
    assert shown["Config"]["Labels"]["monitoring.enable"] == "true"
    assert "OLLAMA_MAX_LOADED_MODELS=2" in shown["Config"]["Env"]
    assert shown["State"]["Status"] == "running"
    assert shown["Config"]["Image"].startswith(f"{IMAGE}@sha256:")
    whoami = served.run("docker exec ollama cat /proc/self/status").stdout
    assert "Uid:\t21003" in whoami
    assert "CapEff:\t0000000000000000" in whoami


def test_models_that_were_downloaded_before_are_seen_and_not_written(machine):
    machine.pillar(profiles={"local": local(models_folder="/srv/ready", cpus=16)})
    machine.apply()
    machine.run("echo weights > /srv/ready/here.gguf")
    assert machine.run("docker exec ollama cat /models/here.gguf").stdout == "weights\n"
    assert "Read-only" in machine.run("docker exec ollama sh -c 'touch /models/x'", check=False).stderr
    # A limit above what there is would be refused by Docker.
    cpus = int(machine.run("nproc").stdout)
    assert machine.inspect()["HostConfig"]["NanoCpus"] == cpus * 10**9


def test_other_programs_find_it_by_the_env_file(served):
    assert served.run("stat -c %a /etc/ai-platform/ollama.env").stdout.strip() == "644"
    command = ". /etc/ai-platform/ollama.env; curl -sf $OLLAMA_HOST_BASE_URL/api/version"
    assert json.loads(served.run(command).stdout)["version"]
    image = served.inspect()["Config"]["Image"]
    inside = f"docker run --rm --network ai-platform --env-file /etc/ai-platform/ollama.env --entrypoint sh {image}"
    told = served.run(f"""{inside} -c 'HOME=/tmp OLLAMA_HOST=$OLLAMA_BASE_URL ollama list'""").stdout
    assert MODEL in told


def test_models_survive_recreation_restart_and_another_image(served):
    before, first = served.digests(), served.inspect()["Id"]
    assert MODEL in before
    served.pillar(profiles={"local": local(memory_mib=1280)})
    served.apply()
    assert served.inspect()["Id"] != first
    assert served.digests() == before
    served.run("docker restart ollama")
    assert served.digests() == before
    second = served.inspect()
    image = second["Config"]["Image"]
    # Of a container of its own: the one that serves has labels, which the image would inherit.
    made = f"docker commit --change 'LABEL another=2' plain {IMAGE}:another"
    served.run(f"docker create --name plain {image} && {made} && docker rm plain")
    served.pillar(profiles={"local": local(version="another")})
    assert "image" in changes(served.apply())["ollama-local platform_container.running"]
    third = served.inspect()
    assert (third["Id"] != second["Id"], third["Image"] != second["Image"]) == (True, True)
    assert third["Config"]["Labels"]["another"] == "2"
    assert served.digests() == before
    served.run("systemctl restart docker", timeout=120)
    assert served.digests() == before


@pytest.fixture
def moving(machine):
    """Publish the image under a tag of the site's registry: the layers the same, another digest for each number."""
    tag, url = "moving", f"http://{IMAGE.replace('/', '/v2/', 1)}/manifests"
    accepted = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
    known = machine.run("docker inspect --format '{{.Config.Image}}' ollama").stdout.strip().partition("@")[2]
    reply = requests.get(f"{url}/{known}", headers={"Accept": accepted}, timeout=20)
    reply.raise_for_status()
    made = []

    def publish(number: int) -> str:
        kind = {"Content-Type": reply.headers["Content-Type"]}
        done = requests.put(f"{url}/{tag}", reply.content + b"\n" * number, headers=kind, timeout=20)
        done.raise_for_status()
        made.append(done.headers["Docker-Content-Digest"])
        return made[-1]

    publish.tag = tag
    yield publish
    for digest in made:
        requests.delete(f"{url}/{digest}", timeout=20).raise_for_status()


def test_an_image_without_a_digest_stays_what_it_was_at_its_first_pull(served, moving):
    """Its tag is moved in the registry meanwhile, and all that the host has of it is removed."""
    first = moving(1)
    served.pillar(profiles={"local": local(version=moving.tag)})
    served.apply()
    assert served.inspect()["Config"]["Image"] == f"{IMAGE}@{first}"
    assert changes(served.apply()) == {}
    second = moving(2)
    assert second != first
    served.run("docker rm --force ollama && docker image prune --all --force")
    assert served.run(f"docker image inspect {IMAGE}@{first}", check=False).returncode != 0
    served.apply()
    assert served.inspect()["Config"]["Image"] == f"{IMAGE}@{first}"
    _, pins = served.call("platform_image.pins")
    assert pins[f"{IMAGE}:{moving.tag}"]["digest"] == first
    _, taken = served.call("platform_image.pin", f"{IMAGE}:{moving.tag}")
    assert taken == {"old": first, "new": second}
    foreseen = served.apply("test=True")["ollama-local platform_container.running"]["changes"]
    assert foreseen == {"image": {"old": f"{IMAGE}@{first}", "new": f"{IMAGE}@{second}"}}
    assert changes(served.apply())["ollama-local platform_container.running"] == foreseen
    assert changes(served.apply()) == {}
    _, forgotten = served.call("platform_image.unpin", f"{IMAGE}:{moving.tag}")
    assert forgotten == {"old": second, "new": None}


def test_two_profiles_stand_side_by_side_and_one_that_goes_leaves_its_models(machine):
    both = {"local": local(), "service": {"memory_mib": 512, "memory_reservation_mib": None, "models": [SMALL]}}
    machine.pillar(run=["local", "service"], profiles=both)
    machine.apply()
    assert (set(machine.digests()), set(machine.digests(11438))) == ({MODEL}, {SMALL})
    before = machine.digests()
    machine.pillar(run=["service"], profiles=both)
    assert set(changes(machine.apply())) == {
        "ollama-containers-retired ollama_container.no_others",
        "ollama-env file.managed",
    }
    assert machine.run("docker ps --format '{{.Names}}'").stdout.split() == ["ollama-service"]
    machine.pillar(profiles=both)
    machine.apply()
    assert machine.digests() == before


def test_two_profiles_on_one_port_are_refused_before_anything_runs(served):
    served.pillar(run=["local", "service"], profiles={"service": {"port": 11434}})
    code, told = served.call("state.apply", "ollama", check=False)
    assert code != 0
    assert "ollama.profiles.service.port" in str(told)
    assert "profile local has this one" in str(told)


def test_a_port_that_a_native_ollama_has_is_refused_with_its_unit(served):
    served.run("docker cp ollama:/usr/bin/ollama /tmp/native && docker rm -f ollama")
    native = "systemd-run --unit native-ollama --setenv HOME=/tmp --setenv OLLAMA_HOST=0.0.0.0:11434 /tmp/native serve"
    served.run(native)
    try:
        served.run("curl -sS --retry 20 --retry-connrefused --retry-delay 1 127.0.0.1:11434/api/version")
        served.pillar(profiles={"local": local(volume="another")})
        states = served.apply(check=False)
        refusal = next(iter(states.values()))
        assert list(states) == ["ollama-local-port ollama_container.port_is_free"]
        for word in ("Port 11434", "native", "native-ollama.service", "pid ", "ollama.profiles.local.port"):
            assert word in refusal["comment"]
        assert "another" not in served.run("docker volume ls -q").stdout
        assert served.run("docker ps -aq").stdout == ""
    finally:
        served.run("systemctl stop native-ollama")
    served.pillar(profiles={"local": local()})
    served.apply()
    assert MODEL in served.digests()


def test_natively_its_unit_takes_the_containers_place_and_the_volume_stays(served):
    """The container has the port and the very version: its answer would pass for the instance's."""
    before, version = served.digests(), artifacts.OLLAMA.version
    served.pillar(
        mode="native",
        version=version,
        source=artifacts.OLLAMA.url.replace(version, "{version}").replace("amd64", "{arch}"),
        hashes={version: {"amd64": artifacts.OLLAMA.manifest()["sha256"]}},
        api_port=11434,
        models_dir="/var/lib/ollama/models",
        models=[MODEL],
        num_parallel=1,
    )
    goes = {"ollama": {"old": "present", "new": None}}
    try:
        foreseen = served.apply("test=True", check=False)
        assert foreseen["ollama-containers-gone ollama_container.no_others"]["changes"] == goes
        assert served.inspect()["State"]["Status"] == "running"
        made = served.apply()
        assert made["ollama-containers-gone ollama_container.no_others"]["changes"] == goes
        assert served.run("docker ps -aq").stdout == ""
        assert "ollama_data" in served.run("docker volume ls -q").stdout.split()
        assert served.run("systemctl is-active ollama").stdout.strip() == "active"
        _, answer = served.call("ollama.run", MODEL, "Say hello.", "num_predict=8", "temperature=0")
        assert answer.strip()
        assert changes(served.apply()) == {}
    finally:
        served.run("systemctl disable --now ollama", check=False)
        served.run("rm -rf /etc/systemd/system/ollama.service* && systemctl daemon-reload")
    served.pillar(profiles={"local": local()})
    served.apply()
    assert served.digests() == before


def test_a_gpu_that_is_demanded_and_not_there_ends_the_run_before_anything(served):
    served.pillar(profiles={"local": local(gpu=True, volume="another")})
    states = served.apply(check=False)
    assert [row["result"] for row in states.values()] == [True, False]
    assert "another" not in served.run("docker volume ls -q").stdout
    assert "no container gets one of NVIDIA's here" in list(states.values())[-1]["comment"]
    served.pillar(profiles={"local": local(gpu="auto")})
    assert changes(served.apply()) == {}


def test_a_port_of_another_container_is_refused_with_its_name(served):
    image = served.inspect()["Config"]["Image"]
    served.run("docker rm -f ollama")
    served.run(f"docker run -d --name squatter -p 127.0.0.1:11434:11434 {image}")
    try:
        refusal = next(iter(served.apply(check=False).values()))
        assert refusal["result"] is False
        assert "container squatter" in refusal["comment"]
    finally:
        served.run("docker rm -f squatter")
    served.apply()


def test_a_network_gets_in_only_where_pillar_says_so(machine, master, nginx_proxy):
    url = f"http://{machine.address}:11434/api/version"
    machine.pillar(profiles={"local": local()})
    machine.apply()
    ask = ["curl", "-s", "-m", "5", url]
    assert master.run(ask, check=False).returncode != 0
    machine.pillar(profiles={"local": local(address=machine.address)})
    code, told = machine.call("state.apply", "ollama", check=False)
    assert code != 0
    assert "ollama.profiles.local.sources" in str(told)
    friend = master.run("ip -4 -o addr show eth0").stdout.split()[3].partition("/")[0]
    machine.pillar(profiles={"local": local(address=machine.address, sources=[f"{friend}/32"])})
    warned = machine.apply()["ollama-local-exposed notice.shown"]
    assert "no authentication" in warned["comment"]
    assert friend in warned["comment"]
    assert json.loads(master.run(ask).stdout)["version"]
    assert nginx_proxy.run(ask, check=False).returncode != 0


def test_a_model_that_cannot_be_had_fails_the_run(machine):
    machine.pillar(profiles={"local": local(models=[f"{REGISTRY}/library/there-is-none:1"], pull_timeout=20)})
    states = machine.apply(check=False)
    failed = [key for key, row in states.items() if row["result"] is False]
    assert failed == ["ollama-local ollama_container.models_present"]
    assert machine.call("state.apply", "ollama", check=False)[0] != 0


def test_everyday_operations(served):
    _, shown = served.call("ollama.show", "local", MODEL)
    assert shown["details"]["family"] == "gemma3"
    assert served.call("ollama.unload", "local", MODEL)[1] is True
    assert "Listening on" in served.call("ollama.logs", "local", "lines=2000")[1]
    used = served.call("ollama.disk_use")[1]
    assert used["models"] == [MODEL]
    assert used["bytes"] > 250_000_000
    assert served.call("ollama.stop")[1] is True
    assert served.inspect()["State"]["Status"] == "exited"
    assert served.call("ollama.start")[1] is True
    before = served.digests()
    assert served.call("ollama.remove")[1] is True
    assert served.run("docker ps -aq").stdout == ""
    served.apply()
    assert served.digests() == before
    code, told = served.call("ollama.wipe", check=False)
    assert code != 0
    assert "confirm=ollama_data" in str(told)
    assert served.digests() == before
    served.call("ollama.wipe", "confirm=ollama_data")
    assert served.digests() == {}
    assert served.call("ollama.pull", "local", f"http://{SMALL}", "insecure=True")[1]["status"] == "success"
    assert served.call("ollama.delete", "local", SMALL)[1] is True


def test_the_doctor_tells_a_well_one_from_one_that_is_stopped(served):
    _, told = served.call("ollama.doctor", "out=json", check=False)
    entries = {row["check"]: row for row in told["entries"]}
    assert len(entries) == 9
    assert all(row["actual"] and row["hint"] for row in entries.values())
    # How fast it answers is the machine's, not the doctor's.
    assert {name for name, row in entries.items() if not row["ok"]} <= {"slow generation", "throughput near zero"}
    served.call("ollama.stop")
    code, told = served.call("ollama.doctor", "out=json", check=False)
    refused = told["entries"][0]
    assert code == 1
    assert refused["ok"] is False
    assert "container ollama is exited" in refused["actual"]
    assert "docker logs --tail 100 ollama" in refused["hint"]
    served.apply()
    served.call("ollama.pull", "local", f"http://{MODEL}", "insecure=True")
    served.call("ollama.copy", "local", MODEL, "twin:1")
    _, told = served.call("ollama.doctor", "out=json", check=False)
    twins = told["entries"][-1]
    assert twins["ok"] is False
    assert "twin:1" in twins["actual"]
    assert "ollama.delete local" in twins["hint"]
    served.call("ollama.delete", "local", "twin:1")


def test_the_doctor_tells_want_of_memory_and_a_limit_of_cpus(machine):
    large = f"{REGISTRY}/library/gemma3-270m:q8_0"
    starved = {"memory_mib": 256, "models": [large]}
    slowed = {"memory_mib": 1024, "memory_reservation_mib": None, "cpus": 0.3, "models": [MODEL]}
    machine.pillar(run=["local", "service"], profiles={"local": starved, "service": slowed})
    machine.apply()
    _, told = machine.call("ollama.doctor", "local", "out=json", check=False)
    entries = {row["check"]: row for row in told["entries"]}
    assert "killed 0 times" not in entries["out of memory"]["actual"]
    assert "ollama.profiles.local.memory_mib" in entries["out of memory"]["hint"]
    assert "killed" in entries["a model does not load"]["actual"]
    _, told = machine.call("ollama.doctor", "service", "out=json", check=False)
    throttled = next(row for row in told["entries"] if row["check"] == "throughput near zero")
    assert throttled["ok"] is False
    assert "stopped in 0%" not in throttled["actual"]
