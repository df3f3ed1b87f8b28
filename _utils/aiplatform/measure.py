"""Measuring models: what to measure where, one request after the other, and what the answers come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

from aiplatform import scoring
from aiplatform.errors import PlatformError
from aiplatform.ollama import Chunk, Limits, OllamaError, normalise
from aiplatform.slots import is_own_name

NANOSECONDS = 1e9
MILLISECONDS = 1000.0
CONDITIONS = ("suite", "ollama_version", "hardware", "num_ctx", "num_thread")
LATENCY = "latency"
ALIAS = "an alias"


class Instance(Protocol):
    """What measuring needs of ``aiplatform.ollama.Client``, which says what each method does."""

    def load(self, model: str, *, options: Mapping[str, Any], keep_alive: float, limits: Limits) -> None: ...  # noqa: D102
    def unload(self, model: str, *, limits: Limits = ...) -> None: ...  # noqa: D102
    def generate(self, model: str, prompt: str, *, limits: Limits = ..., **fields: Any) -> Iterator[Chunk]: ...  # noqa: D102
    def health(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Sample:
    """One answered prompt; times as a client of the instance sees them, rates as Ollama counts them.

    ``error`` says why there is no answer; then ``text`` is None and the figures count as the worst.
    """

    text: str | None = None
    error: str | None = None
    ttft_ms: float | None = None
    wall_s: float = 0.0
    tokens: int = 0
    tokens_per_second: float = 0.0
    gap_ms: float | None = None
    prompt_tokens: int = 0
    finished: str | None = None


@dataclass(frozen=True)
class Installed:
    """A model of the store; ``size`` in bytes of its file. ``answers`` is False for embedding models."""

    name: str
    size: int
    weights_digest: str
    answers: bool = True


@dataclass(frozen=True)
class Task:
    """A model to measure on an instance."""

    model: str
    instance: str
    size: int
    weights_digest: str


@dataclass(frozen=True)
class Plan:
    """What a run measures, and why it measures nothing else."""

    tasks: tuple[Task, ...]
    kept: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


# -- what to measure ------------------------------------------------------------------------------------------------


def plan(
    installed: Iterable[Installed],
    records: Mapping[str, Mapping[str, Any]],
    pillar: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
) -> Plan:
    """Return what is to be measured where.

    installed
        The store's models.
    records
        What has been measured, by weights digest.
    pillar
        The effective pillar: ``benchmark``, ``slots``, ``aliases``.
    conditions
        For each instance what a record must have in common with now: the ``CONDITIONS``.

    Raises ``PlatformError`` where ``benchmark:models`` names one that is not installed.
    """
    settings = pillar["benchmark"]
    models, skipped = distinct(installed, pillar)
    wanted = {normalise(name) for name in settings["models"]}
    _refuse_unknown(wanted, models, skipped)
    tasks, kept = [], []
    for model in models:
        record = records.get(model.weights_digest, {})
        instance = instance_of(kind_before(model.name, record, settings), pillar["slots"])
        if wanted and normalise(model.name) not in wanted:
            skipped[model.name] = "not among benchmark:models"
        elif not settings["fresh"] and is_current(record, instance, conditions[instance]):
            kept.append(model.name)
        else:
            tasks.append(Task(model.name, instance, model.size, model.weights_digest))
    return Plan(tuple(tasks), tuple(kept), skipped)


def distinct(installed: Iterable[Installed], pillar: Mapping[str, Any]) -> tuple[list[Installed], dict[str, str]]:
    """Leave out names that are not models to choose, and second names of the same weights."""
    aliases = [*pillar["aliases"], *pillar["benchmark"]["skip_aliases"]]
    kept: dict[str, Installed] = {}
    skipped: dict[str, str] = {}

    def preference(model: Installed) -> tuple[bool, str]:
        name = normalise(model.name)
        return (name.endswith(":latest"), name)

    for model in sorted(installed, key=preference):
        if is_own_name(model.name, aliases):
            skipped[model.name] = ALIAS
        elif not model.answers:
            skipped[model.name] = "answers no prompts"
        elif (first := kept.setdefault(model.weights_digest, model)) is not model:
            skipped[model.name] = f"same weights as {first.name} (sha256:{model.weights_digest[:12]})"
    return list(kept.values()), skipped


def _refuse_unknown(wanted: set[str], models: Iterable[Installed], skipped: Mapping[str, str]) -> None:
    known = {normalise(model.name) for model in models}
    if unknown := sorted(wanted - known):
        why = {name: reason for name, reason in skipped.items() if normalise(name) in unknown}
        raise PlatformError(
            "These models cannot be measured",
            where="benchmark:models",
            expected=f"installed models: {', '.join(sorted(known)) or 'none'}",
            actual=why or ", ".join(unknown),
        )


def kind_before(model: str, record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the kind that a model is taken for before it is measured: by what is known of it, else by its name."""
    override = scoring.override(model, settings)
    return str(override or record.get("kind") or scoring.kind_by_name(model, settings) or scoring.GENERAL)


def instance_of(kind: str, slots: Mapping[Any, Mapping[str, Any]]) -> str:
    """Return the instance that a kind's slots are on (that of the first of them)."""
    numbers = sorted((number for number, slot in slots.items() if slot["kind"] == kind), key=int)
    return str(slots[numbers[0]]["instance"])


def is_current(record: Mapping[str, Any], instance: str, conditions: Mapping[str, Any]) -> bool:
    """Return whether a record is complete and was made on this instance under these conditions."""
    return "ttft_ms" in record and _same_conditions(record, instance, conditions)


def _same_conditions(record: Mapping[str, Any], instance: str, conditions: Mapping[str, Any]) -> bool:
    wanted = {"instance": instance, **conditions}
    return all(record.get(key) == value for key, value in wanted.items())


# -- one answer -----------------------------------------------------------------------------------------------------


def answered(chunks: Iterable[Chunk], clock: Callable[[], float] = time.monotonic) -> Sample:
    """Take in a streamed answer.

    The first piece with any text, thinking included, ends the time to first token. Rates come from Ollama's own counts;
    where it gave none, from the pieces and their times.
    """
    started = clock()
    times: list[float] = []
    text: list[str] = []
    last: Mapping[str, Any] = {}
    for chunk in chunks:
        last = chunk.data
        if last.get("response") or last.get("thinking"):
            times.append(chunk.at)
            text.append(str(last.get("response") or ""))
    tokens = int(last.get("eval_count") or len(times))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return Sample(
        text="".join(text),
        ttft_ms=times[0] * MILLISECONDS if times else None,
        wall_s=clock() - started,
        tokens=tokens,
        tokens_per_second=_rate(last, times),
        gap_ms=statistics.median(gaps) * MILLISECONDS if gaps else None,
        prompt_tokens=int(last.get("prompt_eval_count") or 0),
        finished=last.get("done_reason"),
    )


def _rate(last: Mapping[str, Any], times: Sequence[float]) -> float:
    count, duration = last.get("eval_count"), last.get("eval_duration")
    if count and duration:
        return float(count) / (float(duration) / NANOSECONDS)
    if len(times) > 1 and times[-1] > times[0]:
        return (len(times) - 1) / (times[-1] - times[0])
    return 0.0


def ask(instance: Instance, model: str, prompt: str, options: Mapping[str, Any], seconds: float) -> Sample:
    """Ask one prompt and return its sample; a refusal or a timeout is a sample with an error.

    options
        Ollama's options, the load options included: without them the model would be loaded again.
    seconds
        The limit for the whole answer.

    Raises ``OllamaError`` where the instance itself is gone: that says nothing about the model.
    """
    limits = Limits(read=seconds, total=seconds)
    try:
        return answered(instance.generate(model, prompt, limits=limits, think=False, options=dict(options)))
    except OllamaError as err:
        if not instance.health():
            raise
        return Sample(error=str(err), wall_s=seconds)


# -- one model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """All that measuring one model needs besides its instance."""

    task: Task
    suite: Mapping[str, Any]
    settings: Mapping[str, Any]
    conditions: Mapping[str, Any]
    load_options: Mapping[str, int]

    @property
    def options(self) -> dict[str, Any]:
        """What each request carries: the same for every model, so that answers can be compared and repeated."""
        fixed = {key: self.settings[key] for key in ("num_predict", "temperature", "seed")}
        return {**fixed, **self.load_options}

    @property
    def seconds(self) -> float:
        """The limit of one prompt."""
        return scoring.timeout(self.task.size, self.settings)

    def begun(self, record: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the record to fill: what an interrupted run left, if it was made under the same conditions."""
        fits = record is not None and _same_conditions(record, self.task.instance, self.conditions)
        if record is not None and fits and "ttft_ms" not in record:
            return {**record, "model": self.task.model, "samples": dict(record.get("samples", {}))}
        return {
            "model": self.task.model,
            "weights_digest": self.task.weights_digest,
            "instance": self.task.instance,
            **self.conditions,
            "samples": {},
        }


def run(
    instance: Instance, job: Job, record: Mapping[str, Any] | None, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure one model and return its record.

    record
        What an earlier run left, or None.
    keep
        Called with the record after each prompt, so that nothing is lost.

    A model that cannot be loaded gets a record with ``failed`` and the worst figures.
    """
    measured = job.begun(record)
    limits = Limits(read=job.settings["load_timeout"], total=job.settings["load_timeout"])
    started = time.monotonic()
    try:
        instance.load(job.task.model, options=job.load_options, keep_alive=-1, limits=limits)
    except OllamaError as err:
        if not instance.health():
            raise
        measured["failed"] = f"cannot be loaded: {err}"
        return finish(measured, job)
    measured.setdefault("load_s", round(time.monotonic() - started, 3))
    samples = measured["samples"]
    for name, question in _questions(instance, job):
        if name not in samples:
            samples[name] = _compact(question())
            keep(measured)
    instance.unload(job.task.model)
    return finish(measured, job)


def _questions(instance: Instance, job: Job) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """Yield each measurement's name and the function that makes it: latency first, then the prompts."""
    yield LATENCY, lambda: latency(instance, job)
    for name, prompt in job.suite["prompts"].items():
        yield name, partial(ask, instance, job.task.model, prompt["prompt"], job.options, job.seconds)


def latency(instance: Instance, job: Job) -> Sample:
    """Return the sample with the median time to first token of the suite's short prompt, the model being loaded."""
    test = job.suite["latency"]
    samples: list[Sample] = []
    for _ in range(test["repeats"]):
        # Whatever was asked last is in the prompt cache; this takes its place, and warms what a first request warms.
        between = {**job.options, "num_predict": 1}
        ask(instance, job.task.model, test["between"], between, job.seconds)
        short = {**job.options, "num_predict": test["num_predict"]}
        samples.append(ask(instance, job.task.model, test["prompt"], short, job.seconds))
    failed = next((sample for sample in samples if sample.ttft_ms is None), None)
    if failed is not None:
        return failed
    times = sorted(sample.ttft_ms for sample in samples if sample.ttft_ms is not None)
    return replace(samples[-1], ttft_ms=statistics.median(times))


def _compact(sample: Sample) -> dict[str, Any]:
    return {key: value for key, value in asdict(sample).items() if value is not None}


def finish(record: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Return the record with its figures: ``tokens_per_second``, ``ttft_ms``, both qualities and the kind.

    A prompt without an answer counts 0 tokens per second and 0 quality: failing never helps a model.
    """
    samples = record["samples"]
    prompts = job.suite["prompts"]
    ttft = samples.get(LATENCY, {}).get("ttft_ms", scoring.NO_LATENCY_MS)
    quality = scoring.qualities(job.suite, {name: samples.get(name, {}).get("text") for name in prompts})
    rates = [samples.get(name, {}).get("tokens_per_second", 0.0) for name in prompts]
    figures = {
        "tokens_per_second": scoring.mean(rates),
        "ttft_ms": ttft,
        "coding_quality": quality[scoring.CODING],
        "general_quality": quality[scoring.GENERAL],
    }
    scores = scoring.composite(ceiling=job.settings["toks_norm_ceiling"], **figures)
    return {**record, **figures, "kind": scoring.kind(job.task.model, scores, job.settings)}


def row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a complete record what the selection keeps: the figures and the conditions, not the answers."""
    return {key: value for key, value in record.items() if key not in {"samples", "kind"}}


def complete(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of all complete records, by name."""
    done = [row(record) for record in records.values() if "ttft_ms" in record]
    return sorted(done, key=lambda one: normalise(one["model"]))


def elsewhere(record: Mapping[str, Any], task: Task, slots: Mapping[Any, Mapping[str, Any]]) -> Task | None:
    """Return the task of measuring a model again where it turned out to serve; None where it was measured there."""
    instance = instance_of(record["kind"], slots)
    return None if instance == task.instance else replace(task, instance=instance)
