"""One model under measurement: loaded once, asked one prompt after the other, and what its answers come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from aiplatform import measure, scoring
from aiplatform.measure import Task
from aiplatform.measure_answer import Instance, Sample, ask, percentiles
from aiplatform.measure_code import Verdict
from aiplatform.measure_memory import Roofline
from aiplatform.ollama import Limits, OllamaError, Timeout

LATENCY = "latency"
PERCENTILES = (50, 95, 99)
# A test that names no length of its own is warmed with one token.
_WARM = {"num_predict": 1}
# Seconds that a model stays loaded without a question: a run that is killed unloads nothing, so it goes by itself.
KEEP_ALIVE = 600
# What a run that goes on with a record takes over of it, besides the answers and the verdicts on their code.
_GOES_ON = ("load_s", "wall_s", "model_s", "execution_s")


class Watch(Protocol):
    """What ``aiplatform.measure_host.Watch`` tells of the time that it was entered."""

    def disturbances(self) -> dict[str, float]:
        """Return what was too much, in words, and by how many times."""


Watching = Callable[[str], AbstractContextManager[Watch]]
Execute = Callable[[Mapping[str, Any], str], Verdict]


@dataclass(frozen=True)
class Job:
    """All that measuring one model needs besides its instance.

    ``watching`` looks at the host while a test of these weights runs, ``execute`` runs an answer's code (None: neither
    is done), and ``roofline`` is what the memory allows this model. ``execution_note`` says why no code is run.
    ``go_on`` is called before each question, and raises where the run has been given up.
    """

    task: Task
    suite: Mapping[str, Any]
    settings: Mapping[str, Any]
    conditions: Mapping[str, Any]
    load_options: Mapping[str, int]
    watching: Watching | None = None
    execute: Execute | None = None
    roofline: Roofline | None = None
    execution_note: str = ""
    go_on: Callable[[], None] = lambda: None

    @property
    def options(self) -> dict[str, Any]:
        """What each request carries: the same for every model, so that answers can be compared and repeated."""
        fixed = {key: self.settings[key] for key in ("num_predict", "temperature", "seed")}
        return {**fixed, **self.load_options}

    @property
    def seconds(self) -> float:
        """The limit of one prompt."""
        return scoring.timeout(self.task.size, self.settings)

    @property
    def passes(self) -> range:
        """The numbers of the passes over the suite."""
        return range(1, self.settings["repeats"] + 1)

    @property
    def tests(self) -> list[tuple[str, str]]:
        """Each test's name in the record, and the prompt's: all of the first pass, then all of the second."""
        names = [LATENCY, *self.suite["prompts"]]
        return [(sample_name(name, number), name) for number in self.passes for name in names]

    def begun(self, record: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the record to fill: what an earlier run left, if it was made under the same conditions.

        A complete one is gone on with, too, where passes are missing; not where everything is to be measured afresh. An
        answer that ran into a limit which is a larger one now is missing.
        """
        new = {
            "model": self.task.model,
            "weights_digest": self.task.weights_digest,
            "size": self.task.size,
            "instance": self.task.instance,
            **self.conditions,
        }
        if record is None or not measure.same_conditions(record, self.task.instance, self.conditions):
            return {**new, "samples": {}}
        if "ttft_ms" in record and self.settings["fresh"]:
            return {**new, "samples": {}}
        samples = {
            name: sample
            for name, sample in record.get("samples", {}).items()
            if sample.get("timed_out_s", self.seconds) >= self.seconds
        }
        verdicts = {name: verdict for name, verdict in record.get("executed", {}).items() if name in samples}
        more = {key: record[key] for key in _GOES_ON if key in record}
        return {**new, **more, "executed": verdicts, "samples": samples}


def sample_name(prompt: str, number: int) -> str:
    """Return the name of a prompt's sample in a record: ``debug`` in the first pass, ``debug 2`` in the second."""
    return prompt if number == 1 else f"{prompt} {number}"


@dataclass
class Examination:
    """A loaded model that is asked; ``model_s`` adds up the seconds that were its own."""

    instance: Instance
    job: Job
    model_s: float = field(default=0.0)

    def ask(self, prompt: str, **options: Any) -> Sample:
        """Ask a prompt, with these options over the job's."""
        self.job.go_on()
        wanted = {**self.job.options, **options}
        sample = ask(self.instance, self.job.task.model, prompt, wanted, self.job.seconds)
        self.model_s += sample.model_s
        return sample

    def between(self) -> None:
        """Take the place of what was asked last in the prompt cache, and warm what a first request warms."""
        self.ask(self.job.suite["latency"]["between"], **_WARM)

    def latency(self) -> Sample:
        """Return the sample with the median time to first token of the suite's short prompt."""
        test = self.job.suite["latency"]
        samples: list[Sample] = []
        for _ in range(test["repeats"]):
            self.between()
            samples.append(self.ask(test["prompt"], num_predict=test["num_predict"]))
        failed = next((sample for sample in samples if sample.ttft_ms is None), None)
        return failed or sorted(samples, key=lambda sample: sample.ttft_ms or 0.0)[len(samples) // 2]

    def test(self, prompt: str) -> Sample:
        """Make the test of a prompt, and make it again where the host was disturbed: the least disturbed one counts."""
        question = self.latency if prompt == LATENCY else partial(self.ask, self.job.suite["prompts"][prompt]["prompt"])
        if self.job.watching is None:
            return question()
        found: list[tuple[float, Sample]] = []
        for attempt in range(1, self.job.settings["disturbance"]["repeats"] + 2):
            if found:
                self.between()
            with self.job.watching(self.job.task.weights_digest) as watch:
                sample = question()
            why = watch.disturbances()
            words = "; ".join(why) or None
            found.append((sum(why.values()), replace(sample, disturbed=words, attempts=attempt)))
            if not why or sample.error:
                break
        return replace(min(found, key=lambda one: one[0])[1], attempts=len(found))


def run(
    instance: Instance, job: Job, record: Mapping[str, Any] | None, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure one model and return its record.

    record
        What an earlier run left, or None.
    keep
        Called with the record after each prompt, so that nothing is lost.

    A model that cannot be loaded gets a record with ``failed`` and the worst figures. None stays loaded, whatever
    happens.
    """
    measured = job.begun(record)
    samples = measured["samples"]
    left = [(name, prompt) for name, prompt in job.tests if name not in samples]
    if left:
        limits = Limits(read=job.settings["load_timeout"], total=job.settings["load_timeout"])
        started = time.monotonic()
        try:
            instance.load(job.task.model, options=job.load_options, keep_alive=KEEP_ALIVE, limits=limits)
        except OllamaError as err:
            if not instance.health():
                raise
            measured["failed"] = f"cannot be loaded: {err}"
            if isinstance(err, Timeout):
                measured["timed_out_s"] = limits.total
            return finish(measured, job)
        measured.setdefault("load_s", round(time.monotonic() - started, 3))
        try:
            _examine(Examination(instance, job), left, measured, keep)
        finally:
            instance.unload(job.task.model, limits=limits)
    execute(measured, job)
    return finish(measured, job)


def _examine(
    examination: Examination,
    left: Iterable[tuple[str, str]],
    measured: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    for name, prompt in left:
        started, before = time.monotonic(), examination.model_s
        measured["samples"][name] = _compact(examination.test(prompt))
        keep(measured)
        measured["wall_s"] = measured.get("wall_s", 0.0) + time.monotonic() - started
        measured["model_s"] = measured.get("model_s", 0.0) + examination.model_s - before


def _compact(sample: Sample) -> dict[str, Any]:
    return {key: value for key, value in asdict(sample).items() if value not in (None, ())}


def execute(measured: dict[str, Any], job: Job) -> None:
    """Run the code of the answers against the suite's hidden tests; the verdicts go into ``executed`` by sample.

    The seconds go into ``execution_s``: they are the code's own, and no part of ``overhead``.
    """
    if job.execute is None:
        return
    known: dict[tuple[str, str], dict[str, Any]] = {}
    verdicts = dict(measured.get("executed", {}))
    for name, prompt in job.tests:
        test, text = job.suite["prompts"].get(prompt, {}), measured["samples"].get(name, {}).get("text")
        if "tests" in test and name not in verdicts:
            key = (prompt, text or "")
            # The same answer twice has the same verdict.
            if key not in known:
                started = time.monotonic()
                known[key] = asdict(job.execute(test["tests"], text or ""))
                measured["execution_s"] = measured.get("execution_s", 0.0) + time.monotonic() - started
            verdicts[name] = known[key]
    measured["executed"] = verdicts


# -- what the answers come to ---------------------------------------------------------------------------------------


def finish(record: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Return the record with its figures: the medians over the passes, their spread, and what else the answers say.

    A prompt without an answer counts 0 tokens per second and 0 quality: failing never helps a model.
    """
    passes = [] if record.get("failed") else [_pass(record, job, number) for number in job.passes]
    figures = {key: _median(one[key] for one in passes) for key in scoring.FIGURES}
    executed = [one["coding_quality_execution"] for one in passes if one["coding_quality_execution"] is not None]
    found = {
        **record,
        **figures,
        "coding_quality_markers": _median(one["coding_quality_markers"] for one in passes),
        "coding_quality_execution": _median(executed) if executed else None,
        "repeats": passes,
        "spread": {key: _range(one[key] for one in passes) for key in scoring.RATES if passes},
        **_details(record["samples"], job),
        "passed": {name: verdict["passed"] for name, verdict in record.get("executed", {}).items()},
        "overhead": _overhead(record),
    }
    if not passes:
        found["ttft_ms"] = scoring.NO_LATENCY_MS
    elif ran_into := [one["timed_out_s"] for one in record["samples"].values() if "timed_out_s" in one]:
        found["timed_out_s"] = min(ran_into)
    if job.execution_note:
        found["execution_note"] = job.execution_note
    if job.roofline:
        found["roofline"] = asdict(job.roofline)
        found["roofline_share"] = job.roofline.share(found["tokens_per_second"])
    return {**found, "kind": measure.kind_of(measure.row(found, job.settings), job.settings)}


def _pass(record: Mapping[str, Any], job: Job, number: int) -> dict[str, Any]:
    samples, prompts = record["samples"], job.suite["prompts"]
    names = {name: sample_name(name, number) for name in prompts}
    answers = {name: samples.get(key, {}) for name, key in names.items()}
    quality = scoring.qualities(job.suite, {name: answer.get("text") for name, answer in answers.items()})
    verdicts = [record["executed"][key]["passed"] for key in names.values() if key in record.get("executed", {})]
    return {
        "tokens_per_second": scoring.mean(answer.get("tokens_per_second", 0.0) for answer in answers.values()),
        "ttft_ms": samples.get(sample_name(LATENCY, number), {}).get("ttft_ms", scoring.NO_LATENCY_MS),
        "coding_quality": quality[scoring.CODING],
        "general_quality": quality[scoring.GENERAL],
        "coding_quality_markers": quality[scoring.CODING],
        "coding_quality_execution": scoring.mean(map(float, verdicts)) if verdicts else None,
    }


def _details(samples: Mapping[str, Mapping[str, Any]], job: Job) -> dict[str, Any]:
    """Return what the report shows beside the figures that count."""
    asked = [samples.get(name, {}) for name, prompt in job.tests if prompt != LATENCY]
    short = [samples.get(name, {}) for name, prompt in job.tests if prompt == LATENCY]
    latencies = (value for sample in asked for value in sample.get("token_ms", ()))
    return {
        "prompts": {prompt: _of_prompt(samples, job, prompt) for prompt in job.suite["prompts"]},
        "wall_tokens_per_second": _known_median(asked, "wall_tokens_per_second"),
        "prompt_tokens_per_second": _known_median(asked, "prompt_tokens_per_second"),
        "ollama_ttft_ms": _known_median(short, "ollama_ttft_ms"),
        "ollama_prompt_ms": _known_median(short, "ollama_prompt_ms"),
        "token_ms": percentiles(latencies, *PERCENTILES),
        "disturbed": {name: sample["disturbed"] for name, sample in samples.items() if sample.get("disturbed")},
        "repeated": sum(sample.get("attempts", 1) > 1 for sample in samples.values()),
    }


def _of_prompt(samples: Mapping[str, Mapping[str, Any]], job: Job, prompt: str) -> dict[str, Any]:
    found = [samples.get(sample_name(prompt, number), {}) for number in job.passes]
    scores = [scoring.score(job.suite["prompts"][prompt], job.suite["markers"], one.get("text")) for one in found]
    return {
        "tokens_per_second": [one.get("tokens_per_second", 0.0) for one in found],
        "quality": statistics.median(scores),
    }


def _overhead(record: Mapping[str, Any]) -> float | None:
    """Return the share of the tests' time that was not the model's; running the answers' code comes after them."""
    wall = record.get("wall_s")
    return max(0.0, 1 - record["model_s"] / wall) if wall else None


def _median(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(statistics.median(numbers)) if numbers else 0.0


def _range(values: Iterable[float]) -> list[float]:
    numbers = list(values)
    return [min(numbers), max(numbers)]


def _known_median(samples: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [sample[key] for sample in samples if sample.get(key) is not None]
    return float(statistics.median(known)) if known else None
