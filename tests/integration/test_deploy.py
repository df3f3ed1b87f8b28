"""The deploy over a real master and three minions: order, failure, resume, lock, limit, dry run."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiplatform import wait

EVERYTHING = {
    *(("preflight", host) for host in ("ai_server", "nginx_proxy", "coredns_host")),
    ("vault", "ai_server"),
    ("docker", "ai_server"),
    ("docker", "coredns_host"),
    ("ollama", "ai_server"),
    *(("verify", host) for host in ("ai_server", "nginx_proxy", "coredns_host")),
}


def results(data):
    return {(row["step"], row["host"]): row["result"] for row in data["phases"]}


def changed(data):
    return {(row["host"], state) for row in data["phases"] for state in row["changed"]}


def test_the_graph_is_followed(site):
    data = site.deploy()
    assert data["retcode"] == 0
    log = site.log()
    assert {(phase, host) for phase, host, *_ in log} == EVERYTHING
    begin = {(phase, host): at for phase, host, what, at in log if what == "begin"}
    end = {(phase, host): at for phase, host, what, at in log if what == "end"}
    for before, after in (("preflight", "vault"), ("vault", "ollama"), ("ollama", "verify"), ("docker", "verify")):
        last = max(at for (phase, _), at in end.items() if phase == before)
        assert last <= min(at for (phase, _), at in begin.items() if phase == after), (before, after)


def test_what_does_not_depend_on_each_other_runs_side_by_side(site):
    """On one host, too: each of the two has begun before either may end."""
    both = ("vault", "docker")
    for phase in both:
        site.hold(phase)
    with ThreadPoolExecutor() as pool:
        deploy = pool.submit(site.deploy)
        try:
            for phase in both:
                wait.until(lambda phase=phase: site.seen(phase, "ai_server", "begin"), 60, what=f"{phase} to begin")
        finally:
            for phase in both:
                site.hold(phase, held=False)
        assert deploy.result()["retcode"] == 0


def test_a_second_run_changes_nothing(site):
    assert changed(site.deploy())
    data = site.deploy()
    assert (data["retcode"], changed(data), data["resumed"]) == (0, set(), [])
    assert set(results(data).values()) == {"ok"}


def test_a_dry_run_touches_nothing_and_predicts_the_changes(site):
    predicted = site.deploy(test=True)
    assert list((site.path / "out").iterdir()) == []
    assert ("ai_server", "vault-file") in changed(predicted)
    assert ("master", "vault") in changed(predicted)
    assert changed(site.deploy()) == changed(predicted)
    assert changed(site.deploy(test=True)) == set()


def test_after_a_deploy_that_went_well_only_what_is_to_be_done_runs(site):
    site.settle()
    assert site.deploy()["retcode"] == 0
    done = site.run("ai_platform.deploy")
    assert (changed(done.data), set(results(done.data).values())) == (set(), {"ok"})
    assert set(results(done.data)) >= EVERYTHING
    assert re.findall(r"^\[.*\] (.+?) +begins on", done.stderr, re.MULTILINE) == ["dry run", "verify"]
    assert done.stderr.count("nothing to do") == len(site.minions)

    (site.path / "out/docker-coredns_host").unlink()
    done = site.run("ai_platform.deploy")
    assert changed(done.data) == {("coredns_host", "docker-file")}
    assert re.findall(r"^\[.*\] (.+?) +begins on", done.stderr, re.MULTILINE) == ["dry run", "docker", "verify"]
    # What the master's own part has to do counts as well.
    (site.path / "out/bootstrap").unlink()
    assert changed(site.deploy()) == {("master", "vault")}
    # Whoever wants every phase run has it so.
    done = site.run("ai_platform.deploy", fresh=True)
    assert "dry run" not in done.stderr
    assert re.search(r"\] preflight +begins on", done.stderr)


def test_a_failure_stops_what_depends_on_it_and_is_named_and_carried_on(site):
    site.fail("vault", "ai_server")
    data = site.deploy()
    assert data["retcode"] == 1
    failure = data["failures"][0]
    assert (failure["phase"], failure["host"], failure["state"]) == ("vault", "ai_server", "vault-work")
    assert results(data)["docker", "coredns_host"] == "changed"
    assert results(data)["ollama", "ai_server"] == "not run"
    assert {phase for phase, _ in site.ran()} == {"preflight", "docker", "vault"}
    assert set(site.record()["scope"]["keys"]) == set(site.minions)

    site.fail("vault", "ai_server", broken=False)
    again = site.deploy()
    assert (again["retcode"], again["resumed"]) == (0, ["docker", "preflight"])
    assert {phase for phase, _ in site.ran()} == {"vault", "ollama", "verify"}
    assert site.deploy()["resumed"] == []


def test_a_host_that_fails_the_preflight_halts_the_whole_run(site):
    """No host is changed before all checks of all hosts have passed, also none that passed its own."""
    site.fail("preflight", "nginx_proxy")
    data = site.deploy()
    assert (data["retcode"], len(data["failures"])) == (1, 1)
    failure = data["failures"][0]
    assert (failure["phase"], failure["host"], failure["state"]) == ("preflight", "nginx_proxy", "preflight-work")
    ran = {row["phase"] for row in data["phases"] if row["result"] != "not run"}
    assert ran == {"minions", "preflight"}
    assert site.ran() == {("preflight", host) for host in site.minions}
    assert {path.name for path in (site.path / "out").iterdir()} == {f"preflight-{host}" for host in site.minions}


def test_fresh_and_changed_inputs_start_at_the_beginning(site):
    site.fail("verify", "nginx_proxy")
    site.deploy()
    site.ran()
    assert site.deploy(fresh=True)["resumed"] == []
    assert site.ran() == EVERYTHING
    site.edit(preflight={"clock_skew": 31})
    assert site.deploy()["resumed"] == []
    assert site.ran() == EVERYTHING


def test_limited_to_a_host_only_that_is_touched(site):
    data = site.deploy(limit="nginx_proxy")
    assert data["retcode"] == 0
    assert site.ran() == {("preflight", "nginx_proxy"), ("verify", "nginx_proxy")}


def test_narrowed_to_phases(site):
    assert site.deploy(phases="docker,vault")["retcode"] == 0
    assert {phase for phase, _ in site.ran()} == {"docker", "vault"}


def test_wrong_input_is_refused_before_anything_runs(site):
    done = site.run("ai_platform.deploy", phases="prefligt")
    assert done.returncode == 1
    assert "did you mean preflight?" in done.data["error"]
    site.edit(platform={"domian": "x"}, slots={5: {"model": "untagged"}})
    done = site.run("ai_platform.deploy")
    assert done.returncode == 1
    assert re.search(r"platform\.domian \(\S+more\.sls:1\): is 'x', expected a known key", done.data["error"])
    assert "is 'untagged', expected a model name with its tag" in done.data["error"]
    assert site.ran() == set()


def test_no_state_runs_on_a_wrong_pillar(site):
    site.edit(platform={"domian": "x"})
    done = site.master.salt_cli(timeout=60).run("state.apply", "fake.docker", minion_tgt="ai_server")
    assert done.returncode != 0
    assert "platform.domian" in done.stdout
    assert site.ran() == set()


def test_the_orchestration_alone_does_the_same(site):
    done = site.run(
        "state.orchestrate", "orch.deploy", pillar=json.dumps({"phases": ["docker"], "limit": ["ai_server"]})
    )
    assert done.returncode == 0
    assert site.ran() == {("docker", "ai_server")}


def test_only_one_deploy_at_a_time(site):
    site.hold("docker")
    command = site.master.salt_run_cli().cmdline("ai_platform.deploy", "phases=docker")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait.until((site.path / "log").exists, 30, what="the first deploy to begin")
        refused = site.run("ai_platform.deploy")
        orchestrated = site.run("state.orchestrate", "orch.deploy")
        site.hold("docker", held=False)
        first.wait(60)
    assert refused.returncode == 1
    assert "ai_platform.deploy of user " in refused.data["error"]
    assert f", pid {first.pid}, since " in refused.data["error"]
    assert orchestrated.returncode != 0
    assert "Another deploy is running" in orchestrated.stdout
    assert first.returncode == 0
    assert {phase for phase, _ in site.ran()} == {"docker"}


def test_a_killed_deploy_leaves_its_lock_to_the_next_one(site):
    """What is under way ends first; then nothing of the killed one is left, also not what showed its progress."""
    site.hold("docker")
    narrowed = {"phases": "docker", "limit": "coredns_host"}
    command = site.master.salt_run_cli().cmdline("ai_platform.deploy", **narrowed)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        wait.until(lambda: site.seen("docker", "coredns_host", "begin"), 30, what="the phase to begin")
        killed.kill()
    refused = site.run("ai_platform.deploy", **narrowed)
    assert refused.returncode == 1
    assert f"pid {killed.pid}, which has ended before its last steps, since " in refused.data["error"]
    site.hold("docker", held=False)
    wait.until(lambda: not running_states(site), 60, what="the phase to end")
    wait.until(lambda: site.run("ai_platform.deploy", **narrowed).returncode == 0, 30, what="the next deploy")


def test_progress_is_shown_apart_from_the_data(site):
    done = site.run("ai_platform.deploy", phases="docker")
    assert "docker" in done.stderr
    assert "states, 1 changed" in done.stderr
    assert json.loads(done.stdout)["retcode"] == 0


def test_a_minion_that_is_down_is_named_and_the_deploy_carried_on(site):
    down = site.minions["coredns_host"]
    down.terminate()
    try:
        began = time.monotonic()
        data = site.deploy()
        assert time.monotonic() - began < 90
    finally:
        down.start()
    assert data["retcode"] == 1
    assert len(data["failures"]) == 1
    assert "host: coredns_host; check: the minion answers; expected: " in data["failures"][0]["reason"]
    assert results(data)["preflight", "ai_server"] == "not run"
    assert site.ran() == set()
    assert site.deploy()["retcode"] == 0


def test_changed_modules_reach_the_minions_before_anything_runs(site):
    """A state run on a minion brings no modules by itself."""
    fresh = site.path / "salt/_grains"
    fresh.mkdir()
    (fresh / "fresh.py").write_text("def fresh():\n    return {'fresh': True}\n")
    try:
        assert ("master", "ai_server") in changed(site.deploy(phases="docker"))
        assert (Path(site.minions["ai_server"].config["extension_modules"]) / "grains/fresh.py").is_file()
        assert changed(site.deploy(phases="docker")) == set()
    finally:
        (fresh / "fresh.py").unlink()
        fresh.rmdir()


def test_after_a_restart_of_the_master_nothing_runs_twice_at_once_and_the_deploy_is_carried_on(site):
    site.hold("docker")
    command = site.master.salt_run_cli().cmdline("--out=json", "ai_platform.deploy", "limit=coredns_host")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        wait.until(lambda: site.seen("docker", "coredns_host", "begin"), 30, what="the slow phase to begin")
        site.master.terminate()
        site.master.start()
        data = json.loads(run.communicate(timeout=60)[0])
    assert (run.returncode, len(data["failures"])) == (1, 1)
    failure = data["failures"][0]
    assert (failure["phase"], failure["host"]) == ("docker", "coredns_host")
    assert "minion coredns_host did not answer" in failure["reason"]
    assert results(data)["verify", "coredns_host"] == "not run"

    refused = site.deploy(limit="coredns_host")
    reason = refused["failures"][0]["reason"]
    assert reason.startswith("host: coredns_host; check: other state runs; expected: none; actual: state.sls ")
    assert "fake.docker" in reason

    site.hold("docker", held=False)
    wait.until(lambda: not running_states(site), 60, what="the slow phase to end")
    assert site.ran() == {("preflight", "coredns_host"), ("docker", "coredns_host")}
    again = site.deploy(limit="coredns_host")
    assert (again["retcode"], again["resumed"]) == (0, ["preflight"])
    assert site.ran() == {("docker", "coredns_host"), ("verify", "coredns_host")}


def running_states(site):
    return site.master.salt_cli(timeout=60).run("saltutil.is_running", "state.*", minion_tgt="coredns_host").data
