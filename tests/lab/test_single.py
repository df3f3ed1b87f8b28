"""A bare Debian server, which is what ``workstation`` is, becomes an Ollama server without a master.

The lab builds one version of Ollama. The second one here, 0.17.5, is the very same build with its version's text
changed; 0.17.6 and 0.17.7 are no Ollama at all: the one is silent, the other one ends at once.
"""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from lab import artifacts, deploy
from tests.lab.conftest import SPARE, changed_or_failed

CHECKOUT = deploy.TARGET
SITE = "http://10.89.77.10:8000"
REGISTRY = "10.89.77.10:5000"
MODEL = f"{REGISTRY}/library/gemma3-270m:q4_k_m"
VERSION = artifacts.OLLAMA.version
OTHER, SILENT, ENDING = "0.17.5", "0.17.6", "0.17.7"
RELEASES = "/srv/releases"
PORT = 11500
OPTIONS = 'options={"num_predict": 4}'
# Runs on the server: makes the releases that the lab has not got of the one that it has.
MAKE = f"""
set -e
mkdir -p {RELEASES}/{VERSION} {RELEASES}/{OTHER} {RELEASES}/{SILENT} {RELEASES}/{ENDING} /srv/tree; cd /srv/tree
curl -fsS -o {RELEASES}/{VERSION}/ollama-linux-amd64.tar.zst {artifacts.OLLAMA.url}
tar --zstd -xf {RELEASES}/{VERSION}/ollama-linux-amd64.tar.zst
LC_ALL=C sed -i 's/{re.escape(VERSION)}/{OTHER}/g' bin/ollama
tar -I 'zstd -1' -cf {RELEASES}/{OTHER}/ollama-linux-amd64.tar.zst bin lib
printf '#!/bin/sh\\nexec sleep infinity\\n' > bin/ollama
tar --zstd -cf {RELEASES}/{SILENT}/ollama-linux-amd64.tar.zst bin
printf '#!/bin/sh\\nexit 1\\n' > bin/ollama
tar --zstd -cf {RELEASES}/{ENDING}/ollama-linux-amd64.tar.zst bin
cd {RELEASES}; sha256sum */*.zst
"""


class Server:
    """The server, as its operator sees it."""

    def __init__(self, host):
        self.run = host.run
        self.url = f"http://127.0.0.1:{PORT}"
        self.hashes = {VERSION: {"amd64": artifacts.OLLAMA.manifest()["sha256"]}}
        self.source = artifacts.OLLAMA.url.replace(VERSION, "{version}").replace("amd64", "{arch}")

    def pillar(self, **changes):
        """Write the site's pillar: the few lines, and what a test has changed in them."""
        ollama = {
            "version": VERSION,
            "source": self.source,
            "hashes": self.hashes,
            "api_host": "0.0.0.0",
            "api_port": PORT,
            "models_dir": "/var/lib/ollama/models",
            "models": [MODEL],
            "memory_max_mib": 1200,
            "num_parallel": 1,
            "ready_timeout": 10,
        }
        text = yaml.safe_dump(
            {
                "ollama": ollama | changes,
                "services": {"ollama": {"reach": ["containers", "10.89.77.10/32"]}},
                "models": {"insecure_registries": [REGISTRY]},
            },
            width=500,
        )
        script = 'mkdir -p /srv/pillar && printf %s "$1" > /srv/pillar/single.sls'
        self.run(["sh", "-c", script, "sh", text])

    def call(self, *words, check=True):
        """``salt-call --local words`` in the checkout."""
        command = ["salt-call", "--local", "--out=json", "--log-level=quiet", *words]
        return self.run(["sh", "-c", f'cd {CHECKOUT} && exec "$@"', "sh", *command], timeout=300, check=check)

    def apply(self, *words):
        """``salt-call --local state.apply ollama``; returns the states, by id."""
        done = self.call("state.apply", "ollama", *words, check=False)
        rows = json.loads(done.stdout)["local"]
        assert isinstance(rows, dict), rows
        found = {f"{row['__id__']} {key.split('_|-')[0]}": row for key, row in rows.items()}
        failed = [key for key, row in found.items() if row["result"] is False]
        assert bool(done.returncode) is bool(failed), (done.returncode, failed)
        return found

    def say(self, *words, check=True):
        """``salt-call --local words``; returns exit code and data, the text of a refusal where there is none."""
        done = self.call(*words, check=check)
        try:
            return done.returncode, json.loads(done.stdout)["local"]
        except ValueError:
            return done.returncode, done.stdout + done.stderr

    def digests(self):
        """The models of the store, with their digests."""
        ask = f"curl -fsS --retry 20 --retry-connrefused --retry-delay 1 {self.url}/api/tags"
        return {row["name"]: row["digest"] for row in json.loads(self.run(ask).stdout)["models"]}

    def answers(self):
        """The version that answers."""
        return json.loads(self.run(["curl", "-fsS", "-m", "5", f"{self.url}/api/version"]).stdout)["version"]


@pytest.fixture(scope="module")
def server(bare):
    """The server with this checkout and a pillar, and nothing else."""
    deploy.copy_tree(SPARE, [name for name in deploy.tree() if not name.startswith(("tests/", "lab/", "docs/"))])
    found = Server(bare)
    found.pillar()
    return found


@pytest.fixture(scope="module")
def installed(server):
    """The states of the first run."""
    left = server.run("ls -d /opt/* /etc/salt /usr/local/bin/salt-call /usr/local/bin/ollama", check=False).stdout
    assert left == ""
    server.run(f"WHEELHOUSE={SITE}/wheels/ {CHECKOUT}/etc/install-single.sh /srv/pillar", timeout=300)
    return server.apply()


@pytest.fixture(scope="module")
def releases(server, installed):
    """Further releases, on the server itself."""
    lines = server.run(MAKE).stdout.splitlines()
    server.hashes = {line.split()[1].split("/")[0]: {"amd64": line.split()[0]} for line in lines}
    server.source = f"file://{RELEASES}/{{version}}/ollama-linux-{{arch}}.tar.zst"


def test_a_few_lines_of_pillar_make_a_bare_server_answer(installed, server):
    assert not [row["comment"] for row in installed.values() if row["result"] is not True]
    assert server.answers() == VERSION
    assert server.run("systemctl is-enabled ollama").stdout.strip() == "enabled"


def test_a_second_run_changes_nothing_and_a_dry_one_says_so(installed, server):
    assert changed_or_failed(server.apply("test=True")) == {}
    assert changed_or_failed(server.apply()) == {}


def test_the_models_of_pillar_are_there_and_answer(installed, server):
    listed = json.loads(server.run(["curl", "-fsS", f"{server.url}/v1/models"]).stdout)["data"]
    assert [row["id"] for row in listed] == [MODEL]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    body |= {"stream": True, "temperature": 0, "seed": 0}
    words = ["curl", "-fsS", "-m", "100", f"{server.url}/v1/chat/completions", "-d", json.dumps(body)]
    chunks = [line for line in server.run(words).stdout.splitlines() if line.startswith("data: ")]
    assert len(chunks) > 2
    assert chunks[-1] == "data: [DONE]"
    loaded = json.loads(server.run(["curl", "-fsS", f"{server.url}/api/ps"]).stdout)["models"]
    assert loaded[0]["details"]["quantization_level"] == "Q4_K_M"


def test_user_store_limits_and_devices_are_what_pillar_and_host_say(installed, server):
    shown = server.run("systemctl show ollama -p User -p Group -p MemoryMax -p PrivateDevices -p Environment").stdout
    assert "User=ollama\nGroup=ollama\n" in shown
    assert f"MemoryMax={1200 * 2**20}\n" in shown
    assert "PrivateDevices=yes" in shown  # no GPU here
    assert "OLLAMA_NUM_PARALLEL=1" in shown
    assert server.run("stat -c '%U:%G %a' /var/lib/ollama/models").stdout == "ollama:ollama 750\n"


def test_whom_pillar_names_gets_through_and_nobody_else(installed, server, master, coredns_host):
    ask = f"curl -sS -m 3 http://{SPARE.address}:{PORT}/api/version"
    assert VERSION in master.run(ask).stdout
    assert coredns_host.run(ask, check=False).stdout == ""


def test_calls_are_counted_where_an_exporter_is_scraped(installed, server):
    """Debian's node_exporter reads the file as its own user, and the counters are Prometheus' own words."""
    folder = "/var/lib/ai-platform/metrics"
    flags = f"--collector.disable-defaults --collector.textfile --collector.textfile.directory={folder}"
    install = "DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y prometheus-node-exporter"
    server.run(f"apt-get -qq update && {install} >/dev/null", timeout=300)
    server.run(f"echo 'ARGS=\"{flags}\"' > /etc/default/prometheus-node-exporter")
    server.run("systemctl restart prometheus-node-exporter")

    def scraped():
        page = server.run("curl -fsS --retry 20 --retry-connrefused --retry-delay 1 127.0.0.1:9100/metrics").stdout
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        assert {sample.value for sample in samples if sample.name == "node_textfile_scrape_error"} == {0}
        return {(one.name, one.labels.get("model"), one.labels.get("outcome")): one.value for one in samples}

    for asked in (1, 2):
        server.call("ollama.generate", "main", MODEL, f"Say hello, {asked}.", OPTIONS)
        assert scraped()["ollama_calls_total", MODEL, "ok"] == asked
    server.call("ollama.generate", "main", "there-is-none:1", "Say hello.", check=False)
    assert scraped()["ollama_calls_total", "there-is-none:1", "ModelNotFound"] == 1
    assert scraped()["ollama_tokens_total", MODEL, None] > 0
    assert scraped()["ollama_call_seconds_count", MODEL, None] == 2


def test_another_processor_is_refused_by_its_name(installed, server):
    path = f"{CHECKOUT}/etc/masterless/minion.d/processor.conf"
    server.run(f"echo 'grains: {{cpuarch: riscv64}}' > {path}")
    try:
        row = server.apply("test=True")["ollama-release ollama"]
    finally:
        server.run(f"rm {path}")
    assert row["result"] is False
    assert "expected: x86_64 or aarch64; actual: riscv64" in row["comment"]


def test_an_upgrade_is_an_edit_of_the_version_and_the_models_stay(releases, server):
    server.pillar(version=OTHER)
    predicted = server.apply("test=True")["ollama-current ollama"]["changes"]
    done = server.apply()["ollama-current ollama"]
    assert (done["result"], done["changes"]) == (True, predicted)
    assert done["changes"]["current"] == {"old": VERSION, "new": OTHER}
    assert server.answers() == OTHER
    assert MODEL in server.run(["curl", "-fsS", f"{server.url}/api/tags"]).stdout
    assert changed_or_failed(server.apply()) == {}


@pytest.mark.parametrize(("broken", "why"), [(SILENT, "does not answer within 10 s"), (ENDING, "keeps ending")])
def test_a_version_that_does_not_answer_is_taken_back_and_the_old_one_serves(releases, server, broken, why):
    server.pillar(version=OTHER)
    server.apply()
    server.pillar(version=broken)
    row = server.apply()["ollama-current ollama"]
    assert row["result"] is False
    assert f"Version {broken} does not serve; the host is back on {OTHER}, which answers" in row["comment"]
    assert why in row["comment"]
    assert server.answers() == OTHER
    assert server.run("readlink /opt/ollama/current").stdout.strip() == f"/opt/ollama/{OTHER}"
    server.pillar(version=OTHER)
    assert changed_or_failed(server.apply()) == {}


def test_a_downgrade_is_the_same_edit_and_needs_no_download(releases, server):
    server.run(f"mv {RELEASES} {RELEASES}.away")
    try:
        server.pillar(version=VERSION)
        changed = changed_or_failed(server.apply())
    finally:
        server.run(f"mv {RELEASES}.away {RELEASES}")
    assert list(changed) == ["ollama-current ollama"]
    assert server.answers() == VERSION


def test_a_release_with_another_hash_is_refused_and_what_runs_stays(releases, server):
    wrong = server.hashes | {OTHER: {"amd64": hashlib.sha256(b"").hexdigest()}}
    server.pillar(version=OTHER, hashes=wrong)
    row = server.apply()["ollama-release ollama"]
    assert row["result"] is False
    assert server.answers() == VERSION


def test_the_server_makes_itself_known_where_that_is_configured_and_not_otherwise(installed, server):
    record = "/etc/avahi/services/ollama-main.service"
    assert server.run(f"test -e {record}", check=False).returncode == 1
    server.pillar(discovery=["avahi"])
    assert not [row for row in server.apply().values() if row["result"] is not True]
    server.run("DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y avahi-utils >/dev/null")
    found = server.run("timeout 10 avahi-browse --resolve --parsable --terminate _ollama._tcp").stdout
    assert re.search(rf"^=;.*;_ollama\._tcp;.*;{PORT};", found, re.MULTILINE), found
    server.pillar()
    server.apply()
    assert server.run(f"test -e {record}", check=False).returncode == 1


def test_everyday_operations(installed, server):
    """The words of docs/ollama-container.md, where ``main`` is a unit and its store a folder."""
    store = "/var/lib/ollama/models"
    server.pillar()
    server.apply()
    before = server.digests()
    assert list(before) == [MODEL]
    assert server.run("stat -c %a /etc/ai-platform/ollama.env").stdout.strip() == "644"
    assert f"OLLAMA_HOST_BASE_URL={server.url}" in server.run("cat /etc/ai-platform/ollama.env").stdout.splitlines()
    used = server.say("ollama.disk_use")[1]
    assert (used["folder"], used["models"]) == (store, [MODEL])
    assert used["bytes"] > 200_000_000

    assert server.say("ollama.stop")[1] is True
    assert server.run("systemctl is-active ollama", check=False).stdout.strip() != "active"
    assert server.say("ollama.start")[1] is True
    assert server.digests() == before
    assert "Listening on" in server.say("ollama.logs", "main", "lines=2000")[1]

    assert server.say("ollama.remove")[1] is True
    assert server.run("test -e /etc/systemd/system/ollama.service", check=False).returncode == 1
    assert not [row["comment"] for row in server.apply().values() if row["result"] is not True]
    assert server.digests() == before

    code, told = server.say("ollama.wipe", check=False)
    assert code != 0
    assert f"confirm={store}" in str(told)
    assert server.digests() == before
    assert server.say("ollama.wipe", f"confirm={store}")[1]["deleted"] == [MODEL]
    assert server.digests() == {}
    server.apply()
    assert server.digests() == before


def test_the_doctor_looks_at_a_native_one_and_says_where_it_is_stopped(installed, server):
    server.pillar()
    server.apply()
    code, told = server.say("ollama.doctor", "out=json", check=False)
    entries = {row["check"]: row for row in told["entries"]}
    assert len(entries) == 9
    assert all(row["actual"] and row["hint"] for row in entries.values())
    assert code == int(bool(told["findings"]))
    # How fast it answers, and how much is free, is the machine's.
    machines = {"slow generation", "throughput near zero", "out of memory", "slow or failed download"}
    assert {name for name, row in entries.items() if not row["ok"]} <= machines
    assert VERSION in entries["refused from the host"]["actual"]
    assert MODEL in entries["a model does not load"]["actual"]
    server.say("ollama.stop")
    try:
        code, told = server.say("ollama.doctor", "out=json", check=False)
        refused = told["entries"][0]
        assert (code, refused["ok"]) == (1, False)
        assert re.search(r"ollama\.service is (inactive|failed)", refused["actual"])
        assert "journalctl --unit ollama.service" in refused["hint"]
    finally:
        server.say("ollama.start")
