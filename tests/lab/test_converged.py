"""A deployed platform: it does what it is for, and deploying it again changes nothing."""

from __future__ import annotations

import json

import pytest

from aiplatform import completions
from tests.lab.conftest import changed_or_failed

INSTANCES = {"node1": 11434, "node0": 11435}
STATES = {
    "ai_server": ["preflight", "vault", "docker", "ollama", "benchmark", "models", "verify"],
    "coredns_host": ["preflight", "docker", "verify"],
    "nginx_proxy": ["preflight", "verify"],
}

# Beginnings of the names of checks that use a service as people and tools do.
REAL = {
    "ai_server": [
        "sign_on_chat",
        "chat_answer",
        "sign_on_vault",
        "sign_on_wrong_password",
        "sign_on_without_role",
        "bot",
    ],
    "nginx_proxy": ["site_", "redirect", "api_answer_general", "api_answer_coding", "api_without_key"],
    "coredns_host": ["dns_names", "dns_unknown"],
}
# Runs on ai_server as root.
TAKE_ROLE = """
import shlex
from pathlib import Path
from keycloak import KeycloakAdmin
lines = Path("/etc/ai-platform-containers/keycloak/secrets.env").read_text().splitlines()
known = {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines)}
password = known["KC_BOOTSTRAP_ADMIN_PASSWORD"]
admin = KeycloakAdmin(server_url="http://127.0.0.1:8180", username="admin", password=password, user_realm_name="master")
admin.connection.get_token()
admin.change_current_realm("ai-platform")
person = admin.get_user_id("ai-platform-check")
admin.delete_realm_roles_of_user(person, [admin.get_realm_role("ai-user")])
"""


@pytest.fixture(scope="module")
def slots(master):
    return {row["slot"]: row for row in master.runner("ai_platform.status")["slots"] if row.get("slot")}


@pytest.fixture(scope="module")
def selection(master):
    return master.json(["cat", "/srv/pillar/model_selection.json"])


def changed_in(answer):
    assert answer["retcode"] == 0, answer["failures"]
    return {row["phase"]: row["changed"] for row in answer["phases"] if row["changed"]}


def test_a_second_deploy_changes_nothing(master):
    assert changed_in(master.runner("ai_platform.deploy", "fresh=True")) == {}


def test_a_deploy_finds_by_its_dry_run_what_was_changed_by_hand(master, ai_server, nginx_proxy):
    """The deploy before went well: this one runs no phase but those, and what needs them."""
    before = master.runner("ai_platform.deploy")
    assert changed_in(before) == {}
    nginx_proxy.run("echo '# by hand' >> /etc/nginx/nginx.conf")
    ai_server.run("docker stop qdrant", timeout=60)
    ai_server.run(["/opt/salt/bin/python", "-W", "ignore", "-c", TAKE_ROLE])
    answer = master.runner("ai_platform.deploy")
    assert changed_in(answer).keys() == {"nginx", "qdrant", "keycloak"}
    assert [(row["step"], row["host"]) for row in answer["phases"]] == [
        (row["step"], row["host"]) for row in before["phases"]
    ]


@pytest.mark.parametrize(("host", "state"), [(host, state) for host, states in STATES.items() for state in states])
def test_a_state_alone_changes_nothing(master, host, state):
    rows = master.salt(host, "state.apply", state)[host]
    assert isinstance(rows, dict), rows
    assert rows
    assert changed_or_failed(rows) == {}


@pytest.mark.parametrize("host", STATES)
def test_the_converged_path_runs_no_command(master, host):
    for state in STATES[host]:
        shown = master.salt(host, "state.show_low_sls", state)[host]
        assert [row["__id__"] for row in shown if row["state"] == "cmd"] == []


def test_every_check_of_the_verification_passes(master):
    answer = master.runner("ai_platform.verify")
    assert [row for row in answer["checks"] if not row["ok"]] == []
    assert {row["host"] for row in answer["checks"]} >= {"ai_server", "nginx_proxy", "coredns_host"}


@pytest.mark.parametrize(("host", "begins"), REAL.items())
def test_the_verification_does_the_real_thing(master, host, begins):
    """A sign-in, a chat, a query, a refused request: these checks are among those that passed."""
    names = master.salt(host, "verify.names")[host]
    assert [begin for begin in begins if not any(name.startswith(begin) for name in names)] == []
    rows = master.salt(host, "verify.run", f"only={json.dumps(begins)}")[host]
    assert len(rows) >= len(begins)
    assert [row for row in rows if not row["ok"]] == []


def test_a_check_person_whose_role_is_gone_is_found(master, ai_server):
    """Somebody takes the role away by hand: the chat refuses, the verification says it, the state gives it back."""
    ai_server.run(["/opt/salt/bin/python", "-W", "ignore", "-c", TAKE_ROLE])
    try:
        rows = master.salt("ai_server", "verify.run", "only=[sign_on_chat, chat_answer]")["ai_server"]
        predicted = master.salt("ai_server", "state.apply", "keycloak", "test=True")["ai_server"]
    finally:
        applied = master.salt("ai_server", "state.apply", "keycloak")["ai_server"]
    assert [row["ok"] for row in rows] == [False, False]
    assert rows[0]["actual"].startswith("the chat refuses")
    for states, result in ((predicted, None), (applied, True)):
        changed = [(row["__id__"], row["result"]) for row in changed_or_failed(states).values()]
        assert changed == [("keycloak-check-member", result)]
    assert master.salt("ai_server", "verify.check", "sign_on_chat")["ai_server"]["ok"]


def test_the_orchestration_is_the_same_deploy(master):
    done = master.run(["salt-run", "--out=json", "state.orchestrate", "orch.deploy"], timeout=300)
    rows = next(iter(json.loads(done.stdout)["data"].values()))
    assert [key for key, row in rows.items() if row["result"] is not True] == []


def test_models_were_chosen_by_measuring(selection):
    assert len(selection["all_metrics"]) >= 6
    left_out = selection["excluded"]
    assert [name for name in left_out if "noise" in name], "random weights must not reach a slot"
    assert [name for name, why in left_out.items() if "same weights" in why], "a second name of the same weights"
    chosen = [value for key, value in selection.items() if key.startswith("slot")]
    assert len(chosen) == 6
    assert None not in chosen
    assert len(set(chosen)) == 6
    assert not [name for name in chosen if "noise" in name]


def test_no_weights_are_in_two_slots(slots):
    digests = [row["digest"] for row in slots.values() if row.get("digest")]
    assert digests
    assert len(digests) == len(set(digests))


def test_each_filled_slot_is_loaded_and_pinned(ai_server, slots):
    loaded = {
        name: ai_server.json(f"curl -sf http://127.0.0.1:{port}/api/ps")["models"] for name, port in INSTANCES.items()
    }
    filled = [row for row in slots.values() if row.get("model")]
    assert filled
    assert all(row["loaded"] for row in filled)
    for name, models in loaded.items():
        chat = [model for model in models if not model["name"].startswith("embedding")]
        assert len(chat) == len([row for row in filled if row["instance"] == name])
        # The embedding model has a place of its own on one instance.
        assert len(models) - len(chat) == (name == "node1")
        # Pinned: Ollama gives "for ever" as a year far away.
        assert all(int(model["expires_at"][:4]) > 2100 for model in models)


@pytest.mark.parametrize(
    ("alias", "instance"), [("llama-family", "node1"), ("coder-128k", "node0"), ("coder-32k", "node0")]
)
def test_an_alias_answers_without_a_load(ai_server, alias, instance):
    options = completions.GREEDY | {"num_predict": 8}
    body = json.dumps({"model": alias, "prompt": "Say hello.", "stream": False, "options": options})
    command = ["curl", "-sf", f"http://127.0.0.1:{INSTANCES[instance]}/api/generate", "-d", body]
    answer = ai_server.json(command)
    assert answer["eval_count"] > 0
    assert answer["response"].strip()
    assert answer["load_duration"] < 1e9, "a warm model needs no load"


def test_runners_are_bound_as_planned(master):
    plans = master.salt("ai_server", "numa.plan")["ai_server"]
    for instance, plan in plans.items():
        runners = master.salt("ai_server", "numa.residency", f"instance={instance}")["ai_server"]
        assert runners, f"{instance} has no runner"
        for runner in runners:
            allowed = master_cpus(master, runner["pid"])
            assert allowed == sorted(plan["cpus"]), runner


def master_cpus(master, pid):
    """The CPUs that a process of ai_server may run on."""
    line = master.salt("ai_server", "cmd.run", f"grep Cpus_allowed_list /proc/{pid}/status")["ai_server"]
    cpus = []
    for part in line.split()[-1].split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


@pytest.mark.parametrize("port", [*INSTANCES.values()])
@pytest.mark.parametrize(
    ("host", "reaches"), [("workstation", False), ("coredns_host", False), ("nginx_proxy", True), ("master", True)]
)
def test_only_those_who_need_it_reach_the_api(request, host, reaches, port):
    command = f"curl -s -o /dev/null --connect-timeout 2 http://10.89.77.100:{port}/api/version"
    done = request.getfixturevalue(host).run(command, check=False)
    assert (done.returncode == 0) is reaches, done.returncode


@pytest.mark.parametrize(("host", "reaches"), [("workstation", False), ("nginx_proxy", True), ("master", True)])
def test_only_those_who_need_it_reach_vault(request, host, reaches):
    command = "curl -sk -o /dev/null --connect-timeout 2 https://10.89.77.100:8202/v1/sys/health"
    done = request.getfixturevalue(host).run(command, check=False)
    assert (done.returncode == 0) is reaches, done.returncode


@pytest.mark.parametrize("unit", ["ollama.service", "ollama-node0.service", "vault.service"])
def test_a_unit_is_confined(ai_server, unit):
    found = ai_server.run(f"systemd-analyze security --no-pager {unit} | tail -n 1").stdout
    exposure = float(found.split("exposure level for")[1].split(":")[1].split()[0])
    assert exposure <= 3.0, found


def test_no_service_is_as_mighty_as_root(ai_server):
    """Whoever may use Docker is root by another name; people may, where pillar names them."""
    assert "docker" not in ai_server.run("id -nG ollama").stdout.split()
    assert "docker" not in ai_server.run("id -nG vault").stdout.split()


def test_a_report_tells_how_the_models_were_chosen(master):
    report = master.run("cat $(ls -t /srv/ai-platform/benchmarks/results/benchmark_*.md | head -n 1)").stdout
    for slot in range(1, 7):
        assert f"| {slot} " in report
    assert "0.45" in report


def test_the_reports_page_has_its_plots(master):
    """The master's Python has matplotlib, which no other host has."""
    page = master.run("cat $(ls -t /srv/ai-platform/benchmarks/results/benchmark_*.html | head -n 1)").stdout
    assert page.count("<svg") >= 3
    assert "This page has no plots" not in page
