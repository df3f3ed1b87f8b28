"""The measurements of Ollama's doctor: one server is asked, loaded and watched; ``doctor`` judges what comes out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from aiplatform import (
    cgroups,
    checks,
    doctor,
    footprint,
    measure,
    ollama_container,
    port_holders,
    reach,
    registry,
    slots,
)
from aiplatform import ollama as api
from aiplatform.checks import Finding
from aiplatform.doctor import Answer
from aiplatform.errors import PlatformError
from aiplatform.files import kernel_text
from aiplatform.ollama_places import Place

PROC = Path("/proc")
PROMPT = "Say hello."
TOKENS = 16
# How many models are tried where the first ones do not answer: an embedding model never does.
CANDIDATES = 3

Functions = Mapping[str, Callable[..., Any]]


class Examination:
    """One server of this host.

    place
        Which one.
    settings
        The host's pillar.
    salt
        Salt's execution functions by name.
    model
        The model that is asked; empty: one that is loaded, else the smallest.
    patience
        Seconds that its answer may take.
    """

    def __init__(self, place: Place, settings: Mapping[str, Any], salt: Functions, model: str, patience: float) -> None:
        self.place, self.settings, self.salt = place, settings, salt
        self.wanted, self.patience = model, patience
        self.client = api.Client(place.url)
        self.error = ""

    def run(self) -> list[Finding]:
        """Make the checks; one that cannot be made is a finding. Commands name this server."""
        made = [checks.run(name, check) for name, check in self.entries().items()]
        look = f"{self.place.status_command}; {self.place.log_command}"
        return [replace(found, hint=(found.hint or look).replace("<instance>", self.place.name)) for found in made]

    def entries(self) -> dict[str, Callable[[], Finding]]:
        """Return the checks by name, in the order of the list."""
        return {
            "refused from the host": self.from_host,
            "refused from a container": self.from_container,
            "slow or failed download": self.download,
            "out of memory": self.memory,
            "GPU not detected": self.gpu,
            "a model does not load": lambda: doctor.loads(self.wanted, list(self.sizes), self.answer, self.error),
            "slow generation": self.slow,
            "throughput near zero": self.dead,
            "duplicates": self.duplicates,
        }

    # -- what several checks need -----------------------------------------------------------------------------

    @cached_property
    def inspected(self) -> dict[str, Any]:
        """The container as Docker shows it; empty for a native server, and where there is none."""
        return (self.salt["platform_container.inspect"](self.place.container) or {}) if self.place.container else {}

    @cached_property
    def pid(self) -> int:
        """The server's first process; 0 where it does not run."""
        if self.place.container:
            return int(self.inspected.get("State", {}).get("Pid", 0))
        return int(self.salt["service.show"](self.place.unit).get("MainPID", 0))

    @cached_property
    def version(self) -> tuple[str, api.OllamaError | None]:
        """The server's version, or why there is none."""
        seconds = min(self.patience, api.QUICK.read)
        try:
            return self.client.version(api.Limits(read=seconds, total=seconds)), None
        except api.OllamaError as err:
            return "", err

    @property
    def hangs(self) -> bool:
        """It listens and does not answer: to ask it more would cost the whole wait each time."""
        return isinstance(self.version[1], api.Timeout)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The models of the store and their bytes, the smallest first; empty where the server does not answer."""
        if self.hangs:
            return {}
        try:
            rows = self.client.tags()
        except api.OllamaError:
            return {}
        return {row["name"]: int(row.get("size", 0)) for row in sorted(rows, key=lambda row: int(row.get("size", 0)))}

    @cached_property
    def own_names(self) -> set[str]:
        """The names of the store that the platform made, staged ones included: no registry has a model by them."""
        return {name for name in self.sizes if slots.is_own_name(name, self.settings.get("aliases", {}))}

    @cached_property
    def loaded(self) -> list[dict[str, Any]]:
        """The loaded models."""
        if self.hangs:
            return []
        try:
            return self.client.ps()
        except api.OllamaError:
            return []

    @cached_property
    def weights(self) -> dict[str, str]:
        """The digest of the weights behind each name of the store."""
        return {name: self.client.digest(name) for name in self.sizes}

    @cached_property
    def answer(self) -> Answer | None:
        """A short answer; None where there is none, and ``error`` says why."""
        if self.hangs:
            self.error = str(self.version[1])
            return None
        names = [self.wanted] if self.wanted else [*(row["name"] for row in self.loaded), *self.sizes]
        if not names:
            self.error = "there is no model to ask"
        for name in list(dict.fromkeys(names))[:CANDIDATES]:
            try:
                return self._ask(name)
            except api.OllamaError as err:
                self.error = str(err)
        return None

    def _ask(self, model: str) -> Answer:
        limits = api.Limits(connect=3.0, read=self.patience, total=self.patience)
        first, last = 0.0, dict[str, Any]()
        for piece in self.client.generate(model, PROMPT, limits=limits, options={"num_predict": TOKENS}):
            first = first or piece.at
            last = piece.data
        seconds = last.get("eval_duration", 0) / api.NANOSECONDS
        rate = last.get("eval_count", 0) / seconds if seconds else 0.0
        return Answer(model, last.get("load_duration", 0) / api.NANOSECONDS, first, last.get("eval_count", 0), rate)

    # -- the entries ------------------------------------------------------------------------------------------

    def from_host(self) -> Finding:
        """Refused from the host."""
        version, error = self.version[0], str(self.version[1] or "")
        holders = [str(holder) for holder in port_holders.holders(self.place.port, self.place.address)]
        return doctor.from_host(self.place, version, error, self._status(), holders)

    def _status(self) -> str:
        if not self.place.container:
            return str(self.salt["service.show"](self.place.unit).get("ActiveState", "not there"))
        if not self.inspected:
            return "not there"
        state = self.inspected["State"]
        return f"{state['Status']} (health: {(state.get('Health') or {}).get('Status', 'none')})"

    def from_container(self) -> Finding:
        """Refused from a container: asked inside one; natively by address and firewall, for there may be no image."""
        place = self.place
        if not self.salt["platform_container.answers"]():
            return doctor.from_container(place, None, "there is no Docker on this host")
        if place.container and self.inspected:
            told = self.salt["platform_container.run"](
                self.inspected["Image"],
                ["list"],
                {"OLLAMA_HOST": place.inner_url, "HOME": "/tmp"},  # noqa: S108 (its own; it is removed with it)
                self.settings["containers"]["network"],
            )
            words = "answers" if told["retcode"] == 0 else f"is refused: {told['output'].strip()[-200:]}"
            detail = f"{place.inner_url} {words}, asked in another container of the network"
            return doctor.from_container(place, told["retcode"] == 0, detail)
        if place.container:
            return doctor.from_container(place, False, f"there is no container {place.container}")
        network = self.salt["platform_container.network"](self.settings["containers"]["network"])
        if network is None:
            return doctor.from_container(place, None, "no network of containers on this host")
        bridge = network["IPAM"]["Config"][0]
        told = reach.connect(bridge["Gateway"], place.port, 3)
        # The host itself gets in by the loopback interface, whatever the firewall says of its containers.
        let_in = self.salt["platform_firewall.lets_containers_in"](f"ollama-{place.name}", bridge["Subnet"])
        detail = f"{told} at {bridge['Gateway']}:{place.port}, their host's address, asked by the host"
        detail += f"; the firewall {'lets' if let_in else 'does not let'} the containers' network in"
        return doctor.from_container(place, told == reach.ANSWERED and let_in, detail)

    def download(self) -> Finding:
        """Slow or failed download: the registry of a model is asked, and gives a piece of its weights."""
        store = Path(self.salt["ollama.store"](self.place.name))
        free = shutil.disk_usage(store if store.is_dir() else "/").free
        partial = sum(path.stat().st_blocks * 512 for path in (store / "blobs").glob("*-partial*"))
        named = self._named()
        insecure = self.settings["models"]["insecure_registries"]
        seconds = rate = None
        error, began = "", time.monotonic()
        try:
            remote = registry.ask(named, insecure)
            seconds = time.monotonic() - began
            rate = registry.rate(named, remote.weights, insecure)
        except api.OllamaError as err:
            error = str(err)
        return doctor.download(f"the registry of {named}", seconds, rate, free, partial, error)

    def _named(self) -> str:
        ollama = self.settings["ollama"]
        pillar = ollama["profiles"].get(self.place.name, {}).get("models") if self.place.container else ollama["models"]
        pulled = [name for name in self.sizes if name not in self.own_names]
        return self.wanted or next(iter([*(pillar or []), *pulled]), "tinyllama:latest")

    def memory(self) -> Finding:
        """Out of memory."""
        limit = cgroups.limits(self.pid).memory if self.pid else None
        left = cgroups.memory_left(self.pid) if self.pid else None
        free = min(bound for bound in (footprint.available(), left) if bound is not None)
        if self.answer is None and self.pid:
            # What a load that fails is killed for shows only afterwards.
            self.__dict__.pop("inspected", None)
        killed = int(bool(self.inspected.get("State", {}).get("OOMKilled")))
        killed += sum(cgroups.counter(self.pid, file, "oom_kill") for file in ("memory.events", "memory.oom_control"))
        return doctor.memory(self.place, free, limit, killed, self._still_to_load())

    def _still_to_load(self) -> int:
        """Bytes of the largest model that this server may have to load yet; 0 where all are, by whatever name."""
        try:
            weights = self.weights
        except api.OllamaError:  # then each name counts as weights of its own
            weights = {name: name for name in self.sizes}
        loaded = {weights.get(row["name"]) for row in self.loaded}
        slots_here = {
            f"slot-{number}:latest"
            for number, slot in self.settings.get("slots", {}).items()
            if slot.get("instance") == self.place.name
        }
        # With slots, the others of the store are candidates of the benchmark, or the other instance's.
        names = slots_here & self.sizes.keys() or self.sizes.keys()
        return max((self.sizes[name] for name in names if weights[name] not in loaded), default=0)

    def gpu(self) -> Finding:
        """GPU not detected."""
        if self.place.container:
            drivers = self.salt["gpu.in_containers"]()
            wanted = self.salt["ollama_container.profiles"]()[self.place.name]["gpu"]
            given = bool(self.inspected.get("HostConfig", {}).get("DeviceRequests"))
            drivers = [vendor for vendor in drivers if vendor == ollama_container.VENDOR]
        else:
            drivers = self.salt["gpu.found"]()
            wanted = self.settings["ollama"]["gpu"]
            given = self.salt["service.show"](self.place.unit).get("PrivateDevices") == "no"
        return doctor.gpu(wanted, drivers, given, self.loaded)

    def slow(self) -> Finding:
        """Slow generation: a short answer is timed."""
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        return doctor.slow(self.answer, self.settings["benchmark"]["thresholds"]["min_tokens_per_sec"], busy)

    def dead(self) -> Finding:
        """Throughput near zero: the same answer, and the binding of the process."""
        answer = self.answer
        if not self.pid:
            return doctor.dead(answer, strict=False, cpus=0, throttled=0.0)
        strict = any(" bind" in line for line in kernel_text(PROC / str(self.pid) / "numa_maps").splitlines())
        periods = cgroups.counter(self.pid, "cpu.stat", "nr_periods")
        stopped = cgroups.counter(self.pid, "cpu.stat", "nr_throttled")
        cpus = len(os.sched_getaffinity(self.pid))
        return doctor.dead(answer, strict=strict, cpus=cpus, throttled=stopped / periods if periods else 0.0)

    def duplicates(self) -> Finding:
        """Duplicates: the weights behind each name."""
        if self.hangs:
            raise PlatformError("There are no names to compare", where=self.place.url, hint=self.place.status_command)
        if not self.sizes:
            # An empty store has no duplicates; one that cannot be listed has its own error.
            self.client.tags()
        return doctor.duplicates(self.weights, self.own_names, self._used())

    def _used(self) -> set[str]:
        """The names of the store that settings or the choice of models have."""
        rows = [*self.settings.get("slots", {}).values(), *self.settings.get("aliases", {}).values()]
        named = [row.get("model") for row in rows if row]
        ollama = self.settings["ollama"]
        for row in (ollama, ollama["container"], *ollama["profiles"].values()):
            named += row.get("models") or []
        named += measure.wanted(self.settings["benchmark"])
        chosen = [name for key, name in (self.settings.get("selection") or {}).items() if key.startswith("slot")]
        wanted = {api.normalise(name) for name in [*named, *chosen] if name}
        return {name for name in self.sizes if api.normalise(name) in wanted}
