"""What is wrong with an Ollama: each entry of the troubleshooting list, what was measured, what to type next. Pure.

A function here judges measurements; ``_modules/ollama_doctor.py`` makes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiplatform.checks import GIGABYTE, Finding
from aiplatform.ollama_places import Place

# Below this many tokens a second something is broken, whatever the processor.
DEAD = 0.5
# Free memory or disk that counts as enough where no model says what it needs, bytes.
ENOUGH = 2 * GIGABYTE
# A download slower than this, in bytes a second, makes 2 GB a matter of half an hour.
SLOW_LINE = 1_000_000
# Share of the periods in which a CPU limit stopped the server.
THROTTLED = 0.2


@dataclass(frozen=True)
class Answer:
    """One short answer of a model: seconds to load and to the first token, tokens, tokens a second."""

    model: str
    load: float
    first: float
    tokens: int
    rate: float


def from_host(place: Place, version: str, error: str, status: str, holders: Sequence[str]) -> Finding:
    """Whether programs of the host reach it.

    version, error
        What it answered, or why it did not.
    status
        What Docker or systemd says of it.
    holders
        Who listens on its port.
    """
    listening = f"; listening there: {', '.join(holders)}" if holders else "; nobody listens there"
    actual = f"{place.url} answers: version {version}" if version else f"{error}{listening}"
    return Finding(
        "refused from the host",
        bool(version),
        f"{place.url} answers",
        f"{actual}; {place.running_as} is {status}",
        f"{place.status_command}; {place.log_command}; salt-call ollama.start {place.name}",
    )


def from_container(place: Place, answered: bool | None, detail: str) -> Finding:
    """Whether containers of the host reach it.

    answered
        Whether it did; None where there is no Docker on the host.
    detail
        How that was found out.
    """
    inside = (
        "docker network inspect ai-platform shows who is in the network; docker network connect ai-platform <container>"
    )
    outside = (
        "docker run --add-host host.docker.internal:host-gateway; in pillar services.ollama.reach with containers, and "
        "ollama.api_host an address that they reach, such as 0.0.0.0; salt-call platform_firewall.ruleset"
    )
    return Finding(
        "refused from a container",
        answered is not False,
        f"{place.inner_url} answers in the containers' network",
        detail,
        f"in a container use OLLAMA_BASE_URL={place.inner_url}, never localhost; "
        f"{inside if place.container else outside}",
    )


def download(registry: str, seconds: float | None, rate: float | None, free: int, partial: int, error: str) -> Finding:
    """Whether models can be fetched.

    registry
        Which one was asked, and for which model.
    seconds, rate
        How long its answer took, and bytes a second of a piece of the weights; None where it gave none.
    free, partial
        Bytes free on the store's disk; bytes of downloads that broke off.

    Error:
        Why it could not be asked.
    """
    line = f"{rate / 1e6:.1f} MB/s" if rate else "not measured"
    answer = f"answers in {seconds:.2f} s, {line}" if seconds is not None else error
    left = f"; {partial / GIGABYTE:.2f} GB of downloads that broke off (the next pull carries on)" if partial else ""
    return Finding(
        "slow or failed download",
        seconds is not None and free >= ENOUGH and (rate is None or rate >= SLOW_LINE),
        f"{registry} answers, at {SLOW_LINE / 1e6:.0f} MB/s or more, and {ENOUGH / GIGABYTE:.0f} GB of disk are free",
        f"{answer}; {free / GIGABYTE:.1f} GB free{left}",
        "curl -sS -o /dev/null -w '%{http_code} %{time_total}' https://registry.ollama.ai/v2/; df -h; "
        "a smaller model meanwhile: salt-call ollama.pull <instance> tinyllama:latest; salt-call ollama.disk_use",
    )


def memory(place: Place, free: int, limit: int | None, killed: int, needed: int) -> Finding:
    """Whether there is memory for a model.

    free
        Bytes that are free to it: the host's, or what its limit leaves.
    limit
        What its container or unit may have at most; None: no limit.
    killed
        How often the kernel killed something of it for want of memory.
    needed
        Bytes of the largest model of the store that is not loaded; 0 where all are.
    """
    bound = f"limit {limit / 2**30:.1f} GiB" if limit else "no limit of its own"
    least = max(needed, ENOUGH if not needed else 0)
    setting = f"ollama.profiles.{place.name}.memory_mib" if place.container else "ollama.memory_max_mib"
    more = f"docker stats --no-stream {place.container}" if place.container else f"systemctl status {place.unit}"
    return Finding(
        "out of memory",
        not killed and free >= least,
        f"{least / 2**30:.1f} GiB free, nothing killed for want of memory",
        f"{free / 2**30:.1f} GiB free, {bound}, killed {killed} times",
        f"free -h; {more}; a smaller or more quantised model (a tag with q4), more memory ({setting}), "
        "or stop other containers",
    )


def gpu(wanted: object, drivers: Collection[str], given: bool, loaded: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether a GPU is used where there is one.

    wanted
        The setting: false, auto or true.
    drivers
        Vendors whose driver is loaded, of those whose devices the server can be given.
    given
        Whether the server may reach the devices.
    loaded
        The loaded models, as ``/api/ps`` lists them.
    """
    on = sum(1 for row in loaded if row.get("size_vram"))
    used = f"{on} of {len(loaded)} loaded models on it" if loaded else "no model is loaded"
    missing = wanted is True and not drivers
    withheld = wanted is not False and bool(drivers) and not given
    unused = given and bool(loaded) and not on
    return Finding(
        "GPU not detected",
        not (missing or withheld or unused),
        "its driver is loaded, its devices are given and models are on it, or none is wanted",
        f"gpu: {wanted}; driver: {', '.join(drivers) or 'none'}; devices {'given' if given else 'not given'}; {used}",
        "nvidia-smi; docker run --rm --gpus all nvidia/cuda:12.4.1-base-ubuntu22.04 nvidia-smi; "
        "salt-call state.apply ollama gives the devices of a driver that was loaded later; "
        "without a GPU models up to 7B run on the CPU",
    )


def loads(model: str, there: Sequence[str], answer: Answer | None, error: str) -> Finding:
    """Whether a model is in the store and loads.

    there
        The models of the store.
    answer, error
        Its answer, or why there was none.
    """
    actual = f"{len(there)} models in the store: {', '.join(there[:8]) or 'none'}"
    if answer:
        actual = f"{answer.model} loaded in {answer.load:.1f} s; {actual}"
    elif error:
        actual = f"{error}; {actual}"
    return Finding(
        "a model does not load",
        answer is not None,
        f"{model or 'a model'} is in the store and answers",
        actual,
        "salt-call ollama.list_models <instance>; "
        f"salt-call ollama.pull <instance> {model or 'llama3.2:3b'}; "
        f"salt-call ollama.show <instance> {model or '<model>'}",
    )


def slow(answer: Answer | None, least: float, busy: float) -> Finding:
    """Whether a model answers as fast as it should.

    least
        Tokens a second.
    busy
        How many processes of the host wanted a CPU over the last minute, for each CPU that it has.
    """
    took = (
        f"{answer.model}: {answer.rate:.1f} tokens/s, first token after {answer.first:.2f} s" if answer else "no answer"
    )
    return Finding(
        "slow generation",
        answer is not None and answer.rate >= least,
        f"{least:g} tokens/s or more",
        f"{took}; load {busy:.2f} for each CPU",
        "top; salt-call ollama.ps <instance>; time salt-call ollama.run <model> 'Say hello.' <instance>; "
        "a smaller or more quantised model",
    )


def dead(answer: Answer | None, strict: bool, cpus: int, throttled: float) -> Finding:
    """Whether throughput is next to nothing, and what of its binding explains that.

    strict
        Whether memory is bound to one node with no way out.
    cpus
        How many CPUs the server may run on.
    throttled
        Share of the periods in which a CPU limit stopped it.
    """
    rate = f"{answer.rate:.2f} tokens/s" if answer else "no answer"
    return Finding(
        "throughput near zero",
        answer is not None and answer.rate >= DEAD and not strict and throttled < THROTTLED,
        f"{DEAD:g} tokens/s or more, memory not bound strictly, stopped by its CPU limit in under {THROTTLED:.0%}",
        f"{rate}; memory {'' if strict else 'not '}bound strictly; {cpus} CPUs; stopped in {throttled:.0%}",
        "salt-call numa.plan; salt-call numa.residency <instance>; membind: false in ollama.instances (docs/numa.md); "
        "in Docker cpus: null, or as many as threads run (control groups v1 hide the limit from Ollama)",
    )


def duplicates(digests: Mapping[str, str], own: Collection[str], used: Collection[str] = ()) -> Finding:
    """Whether two names of the store are the same weights.

    digests
        The digest of each model's weights, by its name.
    own
        Names that the platform itself gives to models that have another one.
    used
        Names that a setting or the choice of models has. None of them is proposed for deletion, nor the last of a
        group; one without a tag of its own comes before the others.
    """
    names: dict[str, list[str]] = {}
    for name, digest in digests.items():
        if name not in own:
            names.setdefault(digest, []).append(name)
    twice = [sorted(group) for group in names.values() if len(group) > 1]
    told = "; ".join(f"{' = '.join(group)}" for group in sorted(twice))
    return Finding(
        "duplicates",
        not twice,
        "each name has weights of its own",
        told or f"{len(names)} models, {len(names)} different weights",
        "".join(
            f"salt-call ollama.delete <instance> {name}; " for group in sorted(twice) for name in _spare(group, used)
        )
        + "salt-call ollama.digest <instance> <model>; after a deletion measure again: salt-run benchmark.run",
    )


def _spare(group: Sequence[str], used: Collection[str]) -> list[str]:
    """Return the name of a group of equal models that may go, if there is one."""
    free = [name for name in group if name not in used]
    return sorted(free, key=lambda name: (name.endswith(":latest"), name))[-1:]


def text(name: str, found: Sequence[Finding]) -> str:
    """Return findings for people: each entry with what was measured and what to type.

    name
        The server's.
    """
    lines = [f"Ollama {name}: {sum(not one.ok for one in found)} findings in {len(found)} entries"]
    for one in found:
        lines += [f"{'ok     ' if one.ok else 'FINDING'} {one.check}", f"        measured: {one.actual}"]
        if not one.ok:
            lines.append(f"        expected: {one.expected}")
        if one.hint:
            lines.append(f"        commands: {one.hint}")
    return "\n".join(lines)
