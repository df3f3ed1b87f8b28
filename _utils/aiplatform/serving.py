"""Making one instance hold what the slot table says, in an order in which no name is ever unresolved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from aiplatform import slots, wait
from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.ollama import Client, Limits, normalise
from aiplatform.slots import Alias, Resident
from aiplatform.states import diff
from aiplatform.store import Store


class Serving:
    """One instance and what it should hold."""

    def __init__(
        self,
        client: Client,
        store: Store,
        table: slots.Table,
        instance: str,
        load_seconds: float,
    ) -> None:
        """Take the instance's client, the store, the table, the instance's name, and the limit of a load or unload."""
        self._client = client
        self._store = store
        self._residents = table.on(instance)
        self._absent = table.absent_on(instance)
        self._own_names = table.names
        self._limits = Limits(read=load_seconds, total=load_seconds)
        self._seconds = load_seconds

    # -- comparing ------------------------------------------------------------------------------------------------

    def differences(self) -> dict[str, Any]:
        """Return how names and loaded models differ from the table, as the changes of a state."""
        runners = self._client.ps()
        changes: dict[str, Any] = {}
        for resident in self._residents:
            wrong = {
                alias.name: found for alias in resident.names if (found := self._alias_difference(resident, alias))
            }
            changes |= wrong
            kept = [alias.name for alias in resident.names if alias.name not in wrong]
            if resident.name in wrong or not self._runner(resident, runners, kept):
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
        return self._runner(resident, self._client.ps(), [alias.name for alias in resident.names])

    def foreign(self) -> list[str]:
        """Return the names of what is loaded and has weights that no name of this instance stands for.

        Such a model takes the place of a slot. An embedding model does not: there is a place for one beside the slots.
        """
        names = {name for one in self._residents for name in (one.model, *(alias.name for alias in one.names))}
        weights = {self._store.weights(name) for name in names} - {None}
        found = []
        for runner in self._client.ps():
            # A name that has moved on says nothing about what was loaded under it.
            current = self._store.digest(runner["name"]) == runner["digest"]
            about = self._store.about(runner["name"]) if current else None
            if about is None or (about["answers"] and about["weights"] not in weights):
                found.append(str(runner["name"]))
        return found

    def _alias_difference(self, resident: Resident, alias: Alias) -> dict[str, Any]:
        """Return ``{what: {old, new}}`` where an alias is not as wanted; empty where it is."""
        current, base = self._store.about(alias.name), self._store.about(resident.model)
        moved = {"model": {"old": self._holds(alias.name), "new": resident.model}}
        if current is None or base is None:
            return moved
        found = diff(current, slots.wanted_about(base, resident.options, alias.system))
        return {**found, **moved} if current["weights"] != base["weights"] else found

    def _holds(self, name: str) -> str | None:
        """Return the model that an alias was made of, else its weights; None where there is no such alias."""
        about = self._store.about(name)
        return (about["parent"] or f"sha256:{about['weights'][:12]}") if about else None

    def _to_delete(self) -> list[str]:
        return [name for name in self._absent if self._store.digest(name)]

    def _runner(
        self, resident: Resident, runners: Sequence[dict[str, Any]], names: Collection[str]
    ) -> dict[str, Any] | None:
        # Ollama lists a runner by the manifest that loaded it: that of any name of the resident will do.
        manifests = {self._store.digest(name) for name in names}
        fits = (row for row in runners if row["digest"] in manifests and row.get("context_length") == resident.num_ctx)
        return next(fits, None)

    def _stale(self, runners: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the runners that were loaded under a name of ours and serve none of this instance any longer."""
        serving = {self._store.digest(alias.name) for resident in self._residents for alias in resident.names}
        ours = (row for row in runners if slots.is_own_name(row["name"], self._own_names))
        return [row for row in ours if row["digest"] not in serving]

    # -- making it so ---------------------------------------------------------------------------------------------

    def converge(self) -> None:
        """Move each resident's own name to its model and load it, then move the aliases, then unload what is left over.

        Raises ``PlatformError`` where afterwards anything still differs.
        """
        for resident in self._residents:
            self._create(resident, resident.names[0])
            self._load(resident)
        for resident in self._residents:
            for alias in resident.aliases:
                self._create(resident, alias)
            self._load(resident)
        for name in self._to_delete():
            self._client.delete(name)
        self._store.refresh()
        self._release()
        self._store.refresh()
        if left := self.differences():
            where = ", ".join(resident.name for resident in self._residents)
            raise PlatformError("The slots are not as wanted", where=where, expected="no difference", actual=left)

    def unload_all(self) -> None:
        """Unload everything; what is loaded under a name that is gone, too."""
        for runner in self._client.ps():
            if self._store.digest(runner["name"]) == runner["digest"]:
                self._unload(runner["name"])
        if self._client.ps():
            self._ask_to_unload(set())
        self._await(lambda: not self._client.ps(), "the instance to unload all its models")

    def _create(self, resident: Resident, alias: Alias) -> None:
        if not self._alias_difference(resident, alias):
            return
        if self._store.about(resident.model) is None:
            # Ollama would pull it here, without a word.
            raise NotFoundError(f"{resident.model} is not in the store", where=resident.key, hint="pull it first")
        fields: dict[str, Any] = {"from": resident.model, "parameters": resident.options}
        if alias.system is not None:
            fields["system"] = alias.system
        for _ in self._client.create(alias.name, **fields):
            pass
        self._store.refresh()

    def _load(self, resident: Resident) -> None:
        if self.runner(resident):
            return
        self._client.load(resident.name, limits=self._limits)
        if self.runner(resident):
            return
        # The same weights are loaded under a name that has changed since, and Ollama took that runner for good enough.
        self._unload(resident.name)
        self._client.load(resident.name, limits=self._limits)

    def _release(self) -> None:
        if self._stale(self._client.ps()):
            self._ask_to_unload({weights for weights in map(self._store.weights, self._models()) if weights})
            what = "the instance to unload what no name stands for any longer"
            self._await(lambda: not self._stale(self._client.ps()), what)

    def _unload(self, name: str) -> None:
        # It goes when the answers under way on it have ended, and on CPUs one of those takes minutes.
        self._client.unload(name, limits=Limits(total=self._seconds))

    def _await(self, check: Callable[[], bool], what: str) -> None:
        wait.until(check, self._seconds, what=what)

    def _models(self) -> Iterator[str]:
        return (resident.model for resident in self._residents)

    def _ask_to_unload(self, keep: set[str]) -> None:
        """Unload all weights but those to keep, and those loaded under a name that still means them.

        Once a name has moved on, only other names of the same weights reach the runner that it loaded. So every
        candidate is asked for; for one that is not loaded that does nothing.
        """
        named = {row["digest"] for row in self._client.ps()}
        asked = set(keep)
        for name, tag in self._store.tags.items():
            weights = self._store.weights(name)
            if tag["digest"] not in named and weights and weights not in asked:
                asked.add(weights)
                self._unload(normalise(name))
