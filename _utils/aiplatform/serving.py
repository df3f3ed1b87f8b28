"""Making one instance hold what the slot table says, in an order in which no name is ever unresolved.

A slot gets its model under a name of its own first (``slot-5:next``): made, loaded, asked for an answer. Only then do
the names that clients call take it over, each in one step, and the old model is unloaded when its last answers have
ended. Whatever fails before that leaves every name as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from aiplatform import numa, slots, wait
from aiplatform.blobs import Blobs
from aiplatform.errors import NotFoundError, PlatformError, WaitTimeoutError
from aiplatform.ollama import NANOSECONDS, Client, Limits, OllamaError, ServerFailed
from aiplatform.slots import Alias, Resident
from aiplatform.states import diff
from aiplatform.store import Store

# Told of each phase that has ended: the slot's name, the phase, its seconds.
Tell = Callable[[str, str, float], None]
POLL_SECONDS = 0.1
# How long nothing of an unloaded model may show before it counts as gone. Ollama (0.17, ``server/sched.go``) has
# requests that took a model by its old name wait while its runner goes, and then loads it again for them; it is listed
# only when its process has been started.
GONE_SECONDS = 2


class Serving:
    """One instance and what it should hold."""

    def __init__(
        self,
        client: Client,
        store: Store,
        blobs: Blobs,
        table: slots.Table,
        instance: str,
        load_seconds: float,
        tell: Tell | None = None,
        room: Callable[[Resident], None] | None = None,
    ) -> None:
        """Take the instance's client, the store and its files, the table, the instance's name, and the limit of a load.

        tell
            Called after each phase of a change; a load or unload may each take ``load_seconds``.
        room
            Called before a load; raises where the host has no memory for it.
        """
        self._client = client
        self._instance = instance
        self._store = store
        self._unloaded = False
        self._blobs = blobs
        self._residents = table.on(instance)
        self._absent = table.absent_on(instance)
        self._own_names = table.names
        self._limits = Limits(read=load_seconds, total=load_seconds)
        self._seconds = load_seconds
        self._tell = tell or (lambda *_: None)
        self._room = room or (lambda _: None)

    # -- comparing ------------------------------------------------------------------------------------------------

    def differences(self) -> dict[str, Any]:
        """Return how names and loaded models differ from the table, as the changes of a state."""
        runners = self._listed()
        changes: dict[str, Any] = {}
        for resident in self._residents:
            names = resident.names
            changes |= {one.name: found for one in names if (found := self._alias_difference(resident, one))}
            if not self._runner(resident, runners, [one.name for one in names if one.name not in changes]):
                changes[f"{resident.name} loaded"] = {"old": None, "new": resident.model}
        changes |= {name: {"model": {"old": self._holds(name), "new": None}} for name in self._to_delete()}
        for runner in self._stale(runners):
            changes[f"{runner['name']} {runner['digest'][:12]}"] = {"old": "loaded", "new": None}
        return changes

    def everything(self) -> dict[str, Any]:
        """Return the differences of an instance that does not answer: all is still to be done."""
        changes: dict[str, Any] = {}
        for resident in self._residents:
            new = {"model": {"old": None, "new": resident.model}}
            changes |= {alias.name: new for alias in resident.names}
            changes[f"{resident.name} loaded"] = {"old": None, "new": resident.model}
        return changes

    def runner(self, resident: Resident) -> dict[str, Any] | None:
        """Return the runner that serves a resident, as ``/api/ps`` lists it; None where there is none."""
        return self._runner(resident, self._listed(), [alias.name for alias in resident.names])

    def foreign(self) -> list[str]:
        """Return the names of what is loaded and has weights that no name of this instance stands for.

        Such a model takes the place of a slot. An embedding model does not: there is a place for one beside the slots.
        """
        names = {name for one in self._residents for name in (one.model, *(alias.name for alias in one.names))}
        weights = {self._store.weights(name) for name in names} - {None}
        found = []
        for runner in self._listed():
            about = self._store.loaded_as(runner)
            if about is None or (about["answers"] and about["weights"] not in weights):
                found.append(str(runner["name"]))
        return found

    def outgoing(self) -> int:
        """Return the bytes of the largest loaded model that is to go: it does so when the new one is in its place."""
        return max(map(_size, self._stale(self._listed())), default=0)

    def staying(self) -> int:
        """Return the bytes of what clients loaded by other names than ours, and nobody unloads when a new model comes.

        0 where nothing more is to be loaded: all that is wanted has found its room beside it.
        """
        runners = self._listed()
        if all(self._runner(one, runners, [alias.name for alias in one.names]) for one in self._residents):
            return 0
        return sum(_size(row) for row in self._unwanted(runners) if not self._is_ours(row))

    def _alias_difference(self, resident: Resident, alias: Alias, name: str = "") -> dict[str, Any]:
        """Return ``{what: {old, new}}`` where an alias, or ``name`` in its stead, is not as wanted."""
        current, base = self._store.about(name or alias.name), self._store.about(resident.model)
        moved = {"model": {"old": self._holds(alias.name), "new": resident.model}}
        if current is None or base is None:
            return moved
        found = diff(current, slots.wanted_about(base, resident.options, alias.system))
        return {**found, **moved} if current["weights"] != base["weights"] else found

    def _holds(self, name: str) -> str | None:
        """Return the model that an alias stands for, else its weights; None where there is no such alias."""
        about = self._store.about(name)
        if about is None:
            return None
        models = (one for one in self._store.tags if not slots.is_own_name(one, self._own_names))
        same = (one for one in models if self._store.weights(one) == about["weights"])
        return about["parent"] or next(same, f"sha256:{about['weights'][:12]}")

    def _to_delete(self) -> list[str]:
        return [name for name in self._absent if self._store.digest(name)]

    def _runner(
        self, resident: Resident, runners: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> dict[str, Any] | None:
        # Ollama lists a runner by the manifest that loaded it: that of any name of the resident that is as wanted.
        both = [name for one in names for name in (one, slots.staged(one))]
        right = {self._store.digest(name) for name in both if self._store.weights(name) == self._weights(resident)}
        fits = (row for row in runners if row["digest"] in right and row.get("context_length") == resident.num_ctx)
        return next(fits, None)

    def _weights(self, resident: Resident) -> str | None:
        return self._store.weights(resident.model)

    def _stale(self, runners: Sequence[dict[str, Any]], needed: Collection[str | None] = ()) -> list[dict[str, Any]]:
        """Return the runners that were loaded under a name of ours and have weights that the table does not want here.

        needed
            Further weights that are wanted.
        """
        return [row for row in self._unwanted(runners, needed) if self._is_ours(row)]

    def _unwanted(self, runners: Sequence[dict[str, Any]], needed: Collection[str | None] = ()) -> list[dict[str, Any]]:
        wanted = {*map(self._weights, self._residents), *needed}
        return [row for row in runners if (self._store.loaded_as(row) or {}).get("weights") not in wanted]

    def _is_ours(self, runner: Mapping[str, Any]) -> bool:
        return slots.is_own_name(runner["name"], self._own_names)

    def _in_use(self) -> set[str | None]:
        """Return the weights that names of this instance stand for now."""
        return {self._store.weights(alias.name) for one in self._residents for alias in one.names}

    # -- making it so ---------------------------------------------------------------------------------------------

    def converge(self) -> None:
        """Bring each resident to its model, one after the other, then take away what is left over.

        One after the other: there is room for one model more than there are places.

        Raises ``PlatformError`` naming what still serves where a step fails, or where in the end something differs.
        """
        for resident in self._residents:
            self._bring(resident)
        for name in self._to_delete():
            self._client.delete(name)
        self._store.refresh()
        self._release(self._instance)
        if self._unloaded:
            self._stay_unloaded()
        if left := self.differences():
            where = ", ".join(resident.name for resident in self._residents)
            raise PlatformError("The slots are not as wanted", where=where, expected="no difference", actual=left)

    def unload_all(self) -> None:
        """Unload everything; what is loaded under a name that is gone, too."""
        for weights in self._loaded():
            if weights:
                self._unload(weights)
        if self._unknown("any"):
            self._ask_to_unload(set())
        self._await(lambda: not self._listed(), "the instance to unload all its models")

    def _bring(self, resident: Resident) -> None:
        wrong = [alias for alias in resident.names if self._alias_difference(resident, alias)]
        if not wrong and self.runner(resident):
            return
        held = self._holds(resident.name)
        if self._store.about(resident.model) is None:
            # Ollama would pull it here, without a word.
            raise NotFoundError(f"{resident.model} is not in the store", where=resident.key, hint="pull it first")
        try:
            self._try(resident, wrong)
            with self._phase(resident, "move"):
                self._blobs.take_places({slots.staged(alias.name): alias.name for alias in wrong})
                self._store.refresh()
        except PlatformError as err:
            self._take_back(resident, wrong)
            raise self._still_serving(resident, held, err) from err
        # Nothing to do, but where the runner was loaded by a name that has just got another system prompt.
        self._load(resident, resident.name, self._keep)
        self._release(resident.name)

    def _try(self, resident: Resident, wrong: Sequence[Alias]) -> None:
        """Make what names are to take over, load it, and have each of them answer; the first name first."""
        first, others = wrong[:1], wrong[1:]
        with self._phase(resident, "stage"):
            for alias in first:
                self._stage(resident, alias)
        name = slots.staged(first[0].name) if first else resident.name
        began = time.monotonic()
        try:
            answering = self._load(resident, name, self._prove)
            if answering is None:  # it was loaded already
                answering = self._prove(name)
        except PlatformError:
            with suppress(OllamaError):
                if self.runner(resident):  # it was loaded, and failed at the question
                    self._tell(resident.name, "load", time.monotonic() - began)
            raise
        self._tell(resident.name, "load", time.monotonic() - began - answering)
        self._tell(resident.name, "answer", answering)
        if others:
            with self._phase(resident, "aliases"):
                for alias in others:
                    self._stage(resident, alias)
                    self._prove(slots.staged(alias.name))

    def _stage(self, resident: Resident, alias: Alias) -> None:
        name = slots.staged(alias.name)
        if not self._alias_difference(resident, alias, name):
            return  # an earlier run came as far as this
        fields: dict[str, Any] = {"from": resident.model, "parameters": resident.options}
        if alias.system is not None:
            fields["system"] = alias.system
        for _ in self._client.create(name, **fields):
            pass
        self._store.refresh()

    def _load(self, resident: Resident, name: str, ask: Callable[[str], float]) -> float | None:
        """Load a resident by asking for one of its names; return what ``ask`` does, None where it is loaded."""
        weights = self._weights(resident)
        if self.runner(resident):
            return None
        if weights not in self._loaded():
            self._room(resident)
        self._evict(weights)
        answering = ask(name)
        self._evict(weights)
        if self.runner(resident):
            return answering
        # The same weights are loaded under a name that nobody remembers, and Ollama took that runner for good enough.
        self._client.load(name, keep_alive=0)
        self._await(lambda: weights not in self._loaded() | self._unknown(weights), f"{name} to be unloaded")
        return ask(name)

    def _keep(self, name: str) -> float:
        """Load a name for good, without a question: no seconds of an answer."""
        self._client.load(name, limits=self._limits)
        return 0

    def _unknown(self, weights: str | None) -> set[str | None]:
        """Return these weights where a runner is loaded that nobody remembers, which may be one of them."""
        return {weights} if any(not self._store.loaded_as(row) for row in self._listed()) else set()

    def _evict(self, weights: str | None) -> None:
        """Drop weights from the page cache: the next reader gets them on its own node, and room is left for others."""
        if weights:
            numa.evict(self._blobs.blob(weights))

    def _prove(self, name: str) -> float:
        """Have a name answer with one token, or with a vector: a model may load and yet fail at its first question.

        The question loads what is not loaded: Ollama (0.17, ``Model.Capabilities``) reads the metadata of the weights
        at each request, 0.14 s of a processor with a vocabulary of 262144 tokens. Returned are the answer's seconds
        after the load.
        """
        if not (self._store.about(name) or {"answers": True})["answers"]:
            self._keep(name)
            began = time.monotonic()
            self._client.embed(name, ["Hi"], limits=self._limits)
            return time.monotonic() - began
        question = [{"role": "user", "content": "Hi"}]
        # One token is no load option: the runner stays as it is. A number on purpose: Ollama refuses the string "-1".
        how = {"think": False, "keep_alive": -1, "options": {"num_predict": 1}}
        *_, last = self._client.chat(name, question, limits=self._limits, **how)
        return max(0.0, last.at - float(last.data.get("load_duration") or 0) / NANOSECONDS)

    def _take_back(self, resident: Resident, wrong: Sequence[Alias]) -> None:
        """Take away what was tried in vain, as far as the instance lets it be: the first error is the one to tell."""
        with suppress(OllamaError, WaitTimeoutError):
            self._store.refresh()
            weights = self._weights(resident)
            if wrong and weights and weights not in self._in_use():
                self._unload(weights)
                self._await(lambda: weights not in self._loaded(), "the new model to be unloaded again")

    def _still_serving(self, resident: Resident, held: str | None, err: PlatformError) -> PlatformError:
        now = held
        with suppress(OllamaError):
            now = self._holds(resident.name)
        serves = (
            f"{resident.name} {'still ' * (now == held)}serves {now}" if now else f"{resident.name} has no model yet"
        )
        return PlatformError(
            f"{resident.model} did not get into {resident.name}: {err.what}",
            where=err.where or resident.key,
            expected=err.expected,
            actual=err.actual,
            hint=f"{serves}; mend the cause and run it again" + (f" ({err.hint})" if err.hint else ""),
        )

    def _release(self, whose: str) -> None:
        """Unload what serves no longer, each when its last answers have ended."""
        needed = self._in_use()
        if not (stale := self._stale(self._listed(), needed)):
            return
        began = time.monotonic()
        known = [about["weights"] for about in map(self._store.loaded_as, stale) if about]
        for weights in known:
            self._unload(weights)
        if len(known) < len(stale):
            self._ask_to_unload({*needed, *map(self._weights, self._residents)})
        what = "the instance to unload what no name stands for any longer"
        self._await(lambda: not self._stale(self._listed(), needed), what)
        self._unloaded = True
        self._tell(whose, "unload", time.monotonic() - began)

    def _stay_unloaded(self) -> None:
        """Unload again what late requests load again, until none has for a while."""

        def quiet() -> bool:
            needed = self._in_use()
            try:
                wait.until(lambda: self._stale(self._listed(), needed), GONE_SECONDS, POLL_SECONDS, "a late request")
            except WaitTimeoutError:
                return True
            self._release(self._instance)
            return False

        self._await(quiet, "clients to leave the old model")

    def _unload(self, weights: str) -> None:
        """Have weights unloaded, by any name of them; they go when the answers under way on them have ended."""
        name = next((name for name in self._store.tags if self._store.weights(name) == weights), None)
        if name and weights in self._loaded():
            self._client.load(name, keep_alive=0)

    def _listed(self) -> list[dict[str, Any]]:
        """Return what is loaded; asked once more where Ollama fails, as it can while a runner goes away."""
        try:
            return self._client.ps()
        except ServerFailed:
            return self._client.ps()

    def _loaded(self) -> set[str | None]:
        """Return the weights of what is loaded, as far as it is known."""
        return {(self._store.loaded_as(row) or {}).get("weights") for row in self._listed()}

    def _await(self, check: Callable[[], bool], what: str) -> None:
        def asked() -> bool:
            try:
                return check()
            except ServerFailed:  # listing while a runner goes away can fail inside Ollama
                return False

        wait.until(asked, self._seconds, POLL_SECONDS, what)

    def _ask_to_unload(self, keep: Collection[str | None]) -> None:
        """Unload all weights but those to keep: for what a runner holds that nobody remembers.

        Only a name of the same weights reaches it. So every candidate is asked for; for one that is not loaded that
        does nothing.
        """
        asked: set[str | None] = set(keep)
        for name in self._store.tags:
            weights = self._store.weights(name)
            if weights and weights not in asked:
                asked.add(weights)
                self._client.load(name, keep_alive=0)

    @contextmanager
    def _phase(self, resident: Resident, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._tell(resident.name, phase, time.monotonic() - began)


def _size(runner: Mapping[str, Any]) -> int:
    return int(runner.get("size") or 0)
