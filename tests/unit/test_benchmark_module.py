"""What the modules and the runner do around the pure parts: order, events, refusals, files."""

from __future__ import annotations

import contextlib
import json
import types

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from _modules import benchmark, model_slots
from _runners import benchmark as runner
from _states import benchmark as benchmark_state
from _states import model_slots as slots_state
from aiplatform import measure, measure_model, measure_progress, ollama, settings
from aiplatform.errors import PlatformError

OPERATOR = {"platform": {"hosts": {"one": {"address": "192.0.2.1", "roles": ["ai_server"]}}}}


@pytest.fixture
def pillar(checkout, tmp_path):
    found = settings.effective(OPERATOR, checkout / "salt") | {"selection": {}}
    found["benchmark"]["state_dir"] = str(tmp_path / "state")
    return found


@pytest.fixture
def salt(pillar, checkout, tmp_path, monkeypatch):
    """The modules with Salt's names, and whatever they call of others noted."""
    calls: list[tuple] = []

    def note(name, answer=None):
        return lambda *args, **kwargs: calls.append((name, *args, *kwargs.values())) or answer

    functions = {
        "cp.get_file_str": lambda _: (checkout / "benchmarks/models/suite.yaml").read_text(),
        "event.send": note("event"),
        "service.available": lambda unit: unit == "ollama-warmup.service",
        "service.restart": note("restart", answer=True),
        "service.show": lambda unit: {"MainPID": "0"},
        "numa.plan": lambda sizes=None: {"node1": {"num_thread": 2}, "node0": {"num_thread": 2}},
        "model_slots.client": lambda name: types.SimpleNamespace(version=lambda: "0.17.4", name=name),
        "model_slots.threads": lambda: {"node1": 2, "node0": 2},
        "model_slots.installed": list,
        "model_slots.missing": lambda models: [],
        "model_slots.unload_all": note("unload_all"),
        "model_slots.warm_up": note("warm_up"),
    }
    opts = {"test": False, "cachedir": str(tmp_path), "file_client": "remote", "id": "one"}
    grains = {"cpu_model": "Xeon", "num_cpus": 28, "mem_total": 131072}
    for module in (benchmark, model_slots, benchmark_state, slots_state):
        for key, value in (("salt", functions), ("pillar", pillar), ("opts", opts), ("grains", grains)):
            monkeypatch.setattr(module, f"__{key}__", value, raising=False)
    return types.SimpleNamespace(functions=functions, calls=calls, opts=opts)


def installed(*names: str) -> list[dict]:
    return [{"name": name, "size": 1, "weights_digest": name * 8, "answers": True} for name in names]


# A reply with all tensors holds the vocabulary, too, and takes Ollama half a second.
def test_of_measured_weights_the_tensors_are_not_asked_for_again(salt, pillar, tmp_path):
    client = types.SimpleNamespace(digest=lambda model: f"{model} weights")
    client.show = lambda model, verbose: {"tensors": [{"name": "output.weight", "type": "F32", "shape": [10, 10]}]}
    salt.functions["model_slots.client"] = lambda name: client
    row = {"bytes_per_token": 2 * 10**9, "gigabytes_per_second": 1.0, "note": ""}
    records = {"a:1 weights": {"roofline": row}, "b:1 weights": {"roofline": None}}
    state = tmp_path / "state"
    state.mkdir()
    (state / "results.json").write_text(json.dumps(records))
    (state / "memory.json").write_text(json.dumps({"node1": {"gigabytes_per_second": 20.0}}))
    assert benchmark.roofline("a:1", "node1")["tokens_per_second"] == 10
    for unknown in ("b:1", "c:1"):
        assert benchmark.roofline(unknown, "node1")["bytes_per_token"] == 400


# -- measuring ----------------------------------------------------------------------------------------------------


def test_baseline_candidates_and_named_models_are_wanted_once(salt, pillar):
    pillar["benchmark"] |= {
        "baseline_models": ["a:1", "B:1"], "candidate_models": [{"name": "b:1"}, {"name": "c:1"}], "models": ["d:1"]
    }  # fmt: skip
    assert benchmark.wanted_models() == ["a:1", "b:1", "c:1", "d:1"]


def test_nothing_to_measure_sends_nothing(salt):
    assert benchmark.measure() == {}
    assert salt.calls == []


def test_slots_are_emptied_before_and_warmed_after(salt, monkeypatch):
    salt.functions["model_slots.installed"] = lambda: installed("a:1")
    monkeypatch.setattr(benchmark, "_measure", lambda *_: salt.calls.append(("measure",)) or {"a:1": {}})
    benchmark.measure()
    assert salt.calls == [
        ("unload_all", "node0"), ("unload_all", "node1"), ("measure",), ("warm_up", "node0"), ("warm_up", "node1")
    ]  # fmt: skip


def test_slots_are_warmed_after_a_failure_too(salt, monkeypatch):
    salt.functions["model_slots.installed"] = lambda: installed("a:1")

    def fail(*_):
        raise PlatformError("broken")

    monkeypatch.setattr(benchmark, "_measure", fail)
    with pytest.raises(PlatformError):
        benchmark.measure()
    assert salt.calls[-1] == ("warm_up", "node1")


def test_slots_are_warmed_where_they_could_not_all_be_emptied(salt):
    def busy(name):
        raise PlatformError(f"{name} is busy")

    salt.functions |= {"model_slots.installed": lambda: installed("a:1"), "model_slots.unload_all": busy}
    with pytest.raises(PlatformError, match="busy"):
        benchmark.measure()
    assert salt.calls == [("warm_up", "node0"), ("warm_up", "node1")]


def test_slots_that_stay_cold_are_an_error_and_the_other_instance_is_warmed_all_the_same(salt, monkeypatch):
    def cold(name):
        salt.calls.append(("warm_up", name))
        raise PlatformError(f"ollama-warmup of {name} failed")

    salt.functions |= {"model_slots.installed": lambda: installed("a:1"), "model_slots.warm_up": cold}
    monkeypatch.setattr(benchmark, "_measure", lambda *_: {"a:1": {}})
    with pytest.raises(PlatformError, match="ollama-warmup of node0 failed; ollama-warmup of node1 failed"):
        benchmark.measure()
    assert salt.calls[-2:] == [("warm_up", "node0"), ("warm_up", "node1")]


def test_slots_that_stay_cold_do_not_hide_why_measuring_failed(salt, monkeypatch):
    def fail(*_):
        raise PlatformError("broken")

    def cold(name):
        raise PlatformError(f"{name} is cold")

    salt.functions |= {"model_slots.installed": lambda: installed("a:1"), "model_slots.warm_up": cold}
    monkeypatch.setattr(benchmark, "_measure", fail)
    with pytest.raises(PlatformError, match="broken"):
        benchmark.measure()


@pytest.fixture
def trial(salt, pillar, monkeypatch):
    """A host where b:1 is recommended, with its ``store``; ``fails`` makes the measuring break off."""
    host = types.SimpleNamespace(fails=True, store=[])
    salt.functions |= {
        "model_slots.installed": lambda: installed(*host.store),
        "model_slots.pull": lambda model: salt.calls.append(("pull", model)) or host.store.append(model),
        "model_slots.client": lambda _: types.SimpleNamespace(version=lambda: "0.17.4", delete=host.store.remove),
    }
    better = {"pull_if_better": True, "recommended_models": [{"name": "b:1", "category": "general"}], "repeats": 0}
    pillar["benchmark"] |= better

    def measuring(pillar, conditions, tasks):
        if tasks and host.fails:
            raise PlatformError("broken")
        known = {one.weights_digest: measured(one.model) | vars(one) | conditions[one.instance] for one in tasks}
        benchmark._write("results.json", benchmark._records() | known)
        return {task.model: {} for task in tasks}

    monkeypatch.setattr(benchmark, "_measure", measuring)
    return host


def test_a_recommended_model_with_which_a_run_broke_off_is_still_on_trial(salt, pillar, trial):
    with pytest.raises(PlatformError, match="broken"):
        benchmark.measure()
    assert trial.store == ["b:1"]
    plan = benchmark.plan()
    assert (plan["measure"], plan["recommended"]) == ({}, {"b:1": "0 of 3 general slots are filled"})
    trial.fails, pillar["benchmark"]["thresholds"]["min_quality_score"] = False, 0.9
    assert benchmark.measure() == {"b:1": {"deleted": "it earned no slot"}}
    assert (trial.store, salt.calls.count(("pull", "b:1"))) == ([], 1)
    assert benchmark.plan()["recommended"] == {}


def test_what_the_operator_wants_by_now_is_on_trial_no_more(salt, pillar, trial):
    with pytest.raises(PlatformError, match="broken"):
        benchmark.measure()
    pillar["benchmark"]["candidate_models"] = [{"name": "B:1"}]
    assert (benchmark.plan()["measure"], benchmark.plan()["recommended"]) == ({"b:1": "node1"}, {})


def test_each_step_is_kept_and_told(salt, tmp_path, monkeypatch):
    salt.functions["model_slots.installed"] = lambda: installed("a:1")

    def run(client, job, record, keep):
        keep({"model": "a:1", "samples": {"latency": {"ttft_ms": 1.0, "tokens_per_second": 7.77}}})
        return {"samples": {}, "tokens_per_second": 1.0, "ttft_ms": 2.0, "coding_quality": 0.0,
                "general_quality": 0.0, "kind": "general", "instance": "node1", "model": "a:1"}  # fmt: skip

    monkeypatch.setattr(measure_model, "run", run)
    assert benchmark.measure()["a:1"]["kind"] == "general"
    events = [call[2] for call in salt.calls if call[0] == "event"]
    assert [(event["test"], event["tests_done"], event["done"]) for event in events] == [
        ("latency", 1, False), (None, 0, True)
    ]  # fmt: skip
    assert events[0]["tokens_per_second"] == 7.8
    (record,) = json.loads((tmp_path / "state/results.json").read_text()).values()
    assert "measured_at" in record


def test_without_a_master_each_step_is_told_on_the_terminal(salt, tmp_path, capsys):
    salt.opts["file_client"] = "local"
    task = measure.Task("a:1", "node1", 1, "a")
    pace = measure_progress.Pace({"a:1": task}, 7, iter([0.0, 2.0]).__next__)
    benchmark._announce(task, {"samples": {"latency": {"tokens_per_second": 7.77}}}, pace)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "one: node1: a:1: latency (1 of 7), 7.8 tokens/s, about 10 s left\n")
    assert salt.calls == []


def test_conditions_name_hardware_version_suite_and_threads(salt):
    found = benchmark._conditions()["node1"]
    assert found.keys() == set(measure.CONDITIONS)
    assert (found["hardware"], found["num_thread"]) == ("Xeon, 28 CPUs, 128 GiB", 2)


@pytest.mark.parametrize(
    ("settings", "available", "why"),
    [({"execute_code": False}, "", "execute_code is false"), ({}, "no systemd", "no systemd")],
)
def test_a_score_by_code_that_cannot_be_run_is_refused_before_anything_is_unloaded(
    salt, pillar, monkeypatch, settings, available, why
):
    salt.functions["model_slots.installed"] = lambda: installed("a:1")
    monkeypatch.setattr(benchmark.measure_code, "available", lambda: available)
    pillar["benchmark"] |= {"scoring": "execution", **settings}
    with pytest.raises(PlatformError, match=why):
        benchmark.measure()
    assert salt.calls == []


def test_names_without_a_tag_are_refused(salt):
    with pytest.raises(PlatformError, match=r"without a tag.*<name>:<tag>.*10\.0\.0\.1:5000/x"):
        benchmark.plan(models="a:1,10.0.0.1:5000/x")


def test_broken_results_are_named(salt, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/results.json").write_text("{")
    with pytest.raises(PlatformError, match=r"results\.json.*remove the file"):
        benchmark.results()


def test_a_dry_run_on_an_empty_host_says_what_will_be_measured(salt):
    def down():
        raise ollama.InstanceDown("nothing answers")

    salt.opts["test"] = True
    salt.functions |= {
        "benchmark.plan": down, "benchmark.to_be_pulled": lambda: ["a:1"], "model_slots.installed": down
    }  # fmt: skip
    state = benchmark_state.measured("all")
    assert state["result"] is None
    assert state["changes"] == {"a:1": "to be measured once it is pulled"}


def test_with_a_master_the_master_chooses(salt):
    with pytest.raises(PlatformError, match=r"salt-run benchmark\.choose"):
        benchmark.choose()


# -- slots --------------------------------------------------------------------------------------------------------


class Registry:
    """A client whose pulls break off a given number of times."""

    def __init__(self, failures: int, error=ollama.OllamaError):
        self.failures = failures
        self.error = error
        self.pulls: list[tuple[str, bool]] = []

    def health(self):
        return True

    def pull(self, model, *, insecure):
        self.pulls.append((model, insecure))
        yield {"status": "pulling", "completed": 1, "total": 2}
        if len(self.pulls) <= self.failures:
            raise self.error("broke off")
        yield {"status": "success"}


@pytest.mark.parametrize(("failures", "pulls"), [(0, 1), (2, 3)])
def test_a_pull_that_breaks_off_goes_on(salt, monkeypatch, failures, pulls):
    registry = Registry(failures)
    monkeypatch.setattr(model_slots, "client", lambda _: registry)
    assert model_slots.pull("a:1")
    assert registry.pulls == [("a:1", False)] * pulls
    assert (salt.calls[-2][2]["operation"], salt.calls[-2][2]["status"]) == ("pull", "success")
    (_, tag, told) = salt.calls[-1]
    assert (tag, told["name"], told["phase"]) == (model_slots.PHASE, "a:1", "pull")


@pytest.mark.parametrize(("error", "pulls"), [(ollama.OllamaError, 3), (ollama.ModelNotFound, 1)])
def test_a_pull_ends_after_some_attempts(salt, monkeypatch, error, pulls):
    registry = Registry(9, error)
    monkeypatch.setattr(model_slots, "client", lambda _: registry)
    with pytest.raises(error):
        model_slots.pull("a:1")
    assert len(registry.pulls) == pulls


def test_a_plain_registry_is_spoken_to_plainly(salt, pillar, monkeypatch):
    pillar["models"]["insecure_registries"] = ["10.0.0.1:5000"]
    registry = Registry(0)
    monkeypatch.setattr(model_slots, "client", lambda _: registry)
    assert model_slots.pull_all(["10.0.0.1:5000/library/a:1", "registry.example/a:1"])
    assert sorted(registry.pulls) == [("http://10.0.0.1:5000/library/a:1", True), ("registry.example/a:1", False)]


def test_an_untagged_pull_is_refused(salt):
    with pytest.raises(PlatformError, match="without a tag"):
        model_slots.pull("10.0.0.1:5000/library/a")


def test_all_is_missing_where_nothing_answers(salt, monkeypatch):
    def down(*_):
        raise ollama.InstanceDown("nothing answers")

    monkeypatch.setattr(model_slots, "client", lambda _: types.SimpleNamespace(tags=down, health=lambda: False))
    assert model_slots.missing(["a:1"]) == ["a:1"]


def test_only_a_warmup_unit_that_exists_is_restarted(salt):
    assert model_slots.warm_up("node1") is True
    assert model_slots.warm_up("node0") is False
    assert salt.calls == [("restart", "ollama-warmup.service")]


def refuse(unit):
    raise CommandExecutionError(f"Job for {unit} failed")


@pytest.mark.parametrize("restart", [lambda unit: False, refuse])
def test_a_warmup_that_fails_is_an_error_with_its_unit(salt, restart):
    salt.functions["service.restart"] = restart
    with pytest.raises(PlatformError, match=r"warm-up failed.*ollama-warmup\.service"):
        model_slots.warm_up("node1")


def test_warmup_settings_name_what_clients_call(salt, pillar):
    pillar["selection"] = {"slot3_coding": "c:1"}
    found = model_slots.warmup_settings("node0")
    assert found["url"] == "http://127.0.0.1:11435"
    assert found["models"] == [{"name": "slot-3", "holds": "c:1", "num_ctx": 32768, "aliases": ["coder-128k"]}]
    embedding = {"name": "embedding", "holds": "nomic-embed-text:v1.5", "num_ctx": 2048, "aliases": []}
    assert model_slots.warmup_settings("node1")["models"] == [embedding]


def test_a_refused_table_is_told_by_the_state_not_by_the_compiler(salt, pillar):
    pillar["selection"] = {"slot1_general": "a:1"}
    pillar["slots"][5]["model"] = "a:1"
    assert "slots.5.model: is 'a:1', expected a model of its own" in model_slots.warmup_settings("node1")["refused"]
    salt.functions |= {"model_slots.differences": model_slots.differences, "model_slots.table": model_slots.table}
    for state in (slots_state.pulled("all"), slots_state.served("node1")):
        assert state["result"] is False
        assert "The slot table is refused" in state["comment"]


def test_warmup_may_take_as_long_as_its_loads(salt):
    # Three slots and the embedding model.
    assert model_slots.warmup_seconds("node1") == 180 + 4 * 900


# -- the runner ---------------------------------------------------------------------------------------------------


def measured(model: str) -> dict:
    figures = {"tokens_per_second": 20, "coding_quality": 0.7, "general_quality": 0.8, "ttft_ms": 500}
    return {"model": model, "weights_digest": model} | figures


@pytest.fixture
def master(pillar, checkout, tmp_path, monkeypatch):
    """The runner on a master that has one host, which answers from a table."""
    pillar["benchmark"]["report_dir"] = str(tmp_path / "reports")
    answers = {
        "benchmark.results": {"models": [measured("a:1")], "skipped": {}},
        "benchmark.plan": {"measure": {}, "keep": ["a:1"], "skip": {}},
        "benchmark.to_be_pulled": [],
        "saltutil.refresh_pillar": True,
        "state.apply": {"x": {"result": True, "changes": {}, "comment": "", "__id__": "x", "name": "x"}},
    }
    asked: list[tuple] = []

    def execute(hosts, function, arg=(), **kwargs):
        asked.append((function, kwargs.get("kwarg")))
        if isinstance(function, list):  # several at once
            return {host: {name: answers[name] for name, _ in zip(function, arg, strict=True)} for host in hosts}
        return {host: answers[function] for host in hosts if answers[function] is not None}

    opts = {"pillar_roots": {"base": [str(tmp_path)]}, "file_roots": {"base": [str(checkout / "salt")]}}
    monkeypatch.setattr(runner, "__opts__", opts, raising=False)
    monkeypatch.setattr(runner, "__salt__", {"salt.execute": execute}, raising=False)
    monkeypatch.setattr(runner, "__context__", {}, raising=False)
    monkeypatch.setattr(runner.settings, "load", lambda _: pillar | {"selection": settings.selection([str(tmp_path)])})
    monkeypatch.setattr(runner.measure_progress, "shown", lambda _: contextlib.nullcontext())
    file = tmp_path / settings.SELECTION_FILE
    return types.SimpleNamespace(answers=answers, asked=asked, file=file, reports=tmp_path / "reports")


def test_choosing_writes_selection_and_report_once(master):
    first = runner.choose()
    assert first["changes"]["slot1_general"] == {"old": None, "new": "a:1"}
    written = master.file.read_text()
    assert json.loads(written)["slot1_general"] == "a:1"
    reports = sorted(master.reports.iterdir())
    assert [path.suffix for path in reports] == [".html", ".json", ".md"]
    assert all("a:1" in path.read_text() for path in reports)
    again = runner.choose()
    assert again["changes"] == {}
    assert master.file.read_text() == written
    assert sorted(master.reports.iterdir()) == reports


def test_a_dry_choice_writes_nothing_and_predicts_the_same(master):
    predicted = runner.choose(test=True)
    assert not master.file.exists()
    assert not master.reports.exists()
    assert predicted["changes"] == runner.choose()["changes"]


@pytest.mark.parametrize(
    "answer",
    [
        {"benchmark.plan": {"measure": {"b:1": "node1"}}},
        {"benchmark.plan": "'benchmark.plan' is not available."},
        {"benchmark.plan": None},
        {"benchmark.to_be_pulled": ["b:1"]},
    ],
)
def test_a_dry_choice_before_the_measuring_predicts_a_change(master, answer):
    runner.choose()
    master.answers |= answer
    assert runner.choose(test=True)["changes"].keys() == {"selection"}


def test_a_kept_selection_without_a_report_gets_one(master):
    runner.choose()
    for report in master.reports.iterdir():
        report.unlink()
    assert runner.choose()["changes"].keys() == {"report"}
    assert len(list(master.reports.iterdir())) == 3


def test_a_host_without_figures_is_named(master):
    master.answers["benchmark.results"] = "Traceback\nInstanceDown: Nothing answers"
    answer = runner.choose()
    assert answer["retcode"] == 1
    assert "where: one" in answer["comment"]
    assert "InstanceDown: Nothing answers" in answer["comment"]
    assert runner.__context__["retcode"] == 1


def test_a_run_measures_then_chooses(master):
    answer = runner.run(models="a:1, b:1", fresh=True)
    assert answer["retcode"] == 0
    override = {"benchmark": {"fresh": True, "models": ["a:1", "b:1"]}}
    assert master.asked[0] == ("state.apply", {"pillar": override, "test": False})
    assert json.loads(master.file.read_text())["slot1_general"] == "a:1"


def test_a_run_that_fails_on_a_host_chooses_nothing(master):
    master.answers["state.apply"]["x"] |= {"result": False, "comment": "registry gone"}
    answer = runner.run()
    assert answer["retcode"] == 1
    assert "one: x: registry gone" in answer["comment"]
    assert not master.file.exists()


def test_a_lost_report_is_written_again_from_the_selection(master):
    assert "nothing to report" in runner.report()["comment"]
    runner.choose()
    assert runner.report()["report"].endswith(".md")


def test_select_reads_a_file_and_asks_nobody(master, tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"models": [measured("coder:1")]}))
    assert runner.select(str(path))["slot3_coding"] == "coder:1"
    path.write_text('{"models": [{"model": "x:1", "tokens_per_second": NaN}]}')
    assert "tokens_per_second of x:1" in runner.select(str(path))["comment"]
    assert master.asked == []


def test_the_suite_is_data(checkout):
    assert yaml.safe_load((checkout / "salt/benchmark/suite/suite.yaml").read_text())["prompts"]
