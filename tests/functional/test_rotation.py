"""A rotation on a real Ollama: the locked slot's runner stays, no name is ever unresolved, twelve faults do no harm."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from _modules import model_slots
from aiplatform import footprint, numa, slot_rules, slots, transfer
from aiplatform.blobs import Blobs
from aiplatform.errors import PlatformError
from aiplatform.ollama import Client, Limits, OllamaError, OutOfMemory
from aiplatform.registry import WEIGHTS
from aiplatform.wait import until
from tests.conftest import CHECKOUT
from tests.functional.local_ollama import serving, weights
from tests.functional.local_server import free_port
from tests.functional.slot_server import Site, make, registry, servers

BROKEN_TEMPLATE = "{{ index .Messages 99 }}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An instance in service: slot 1 holds ``locked:1``, slot 5 and ``coder-rotate`` hold ``old:1``."""
    weights()
    folder = tmp_path_factory.mktemp("slots")
    with serving(folder) as client:
        make(client)
        found = Site(client, folder)
        found.serving("old:1").converge()
        with found.bound():
            yield found


@pytest.fixture
def unharmed(site):
    """Whatever the test does to slot 5: both runners are the same processes, and every name means what it meant."""
    before = state(site)
    yield site
    assert state(site) == before
    assert site.serving("old:1").differences() == {}
    assert site.ask("coder-rotate") is not None


def state(site):
    names = ("slot-1", "llama-family", "slot-5", "coder-rotate")
    store = site.store()
    return site.runners(), {name: store.weights(name) for name in names}


def failed(site, model="new:1", **more) -> str:
    with pytest.raises(PlatformError) as caught:
        site.serving(model, **more).converge()
    return str(caught.value)


# -- twelve faults: the old model keeps serving, nothing is lost --------------------------------------------------


@pytest.fixture(scope="module")
def goods(site):
    """The manifest of a model that the store has no more, and what it is made of: {digest: bytes}."""
    make(site.client, {"goods:1": "noise-1.gguf"})
    manifest = json.loads(site.blobs.manifest("goods:1").read_text())
    blobs = {f"sha256:{digest}": site.blobs.blob(digest).read_bytes() for digest in site.blobs.layers("goods:1")}
    site.client.delete("goods:1")
    return manifest, blobs


@pytest.fixture
def incoming(site, goods):
    """A registry that has the model; with its name there, its blobs, and the name of its weights."""
    manifest, blobs = goods[0], dict(goods[1])
    weights = next(row["digest"] for row in manifest["layers"] if row["mediaType"] == WEIGHTS)
    found = SimpleNamespace(blobs=blobs, weights=weights, halfway=lambda digest, first: None)
    with registry(blobs, {"library/incoming:1": manifest}, lambda *asked: found.halfway(*asked)) as host:
        site.pillar["models"]["insecure_registries"] = [host]
        found.name = f"{host}/library/incoming:1"
        yield found
        with contextlib.suppress(OllamaError):
            site.client.delete(found.name)


def whole(site, incoming):
    """Whether the store has the model, each file of it read anew."""
    blobs = Blobs(site.folder / "models")
    return site.client.has(incoming.name) and blobs.layers(incoming.name) and not blobs.damaged(incoming.name)


def test_wrong_digest_in_the_registry(unharmed, incoming):
    right = incoming.blobs[incoming.weights]
    incoming.blobs[incoming.weights] = bytes(len(right))
    state = unharmed.rotated(incoming.name)
    assert state["result"] is False
    assert "digest mismatch" in state["comment"]
    assert not unharmed.client.has(incoming.name)
    incoming.blobs[incoming.weights] = right
    assert unharmed.pulled(incoming.name)["result"] is True
    assert whole(unharmed, incoming)


def truncate(path):
    os.truncate(path, 100)


def flip(path):
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "100 of 40234400 bytes"), (flip, "its content has the digest")],
    ids=["truncated file", "flipped byte"],
)
def test_damaged_file(unharmed, incoming, damage, said):
    """Ollama takes what is there for right and fetches nothing; the state finds it, and the pull discards it first."""
    assert unharmed.pulled(incoming.name)["result"] is True
    damage(unharmed.blobs.blob(incoming.weights.removeprefix("sha256:")))
    predicted = unharmed.pulled(incoming.name, test=True)
    assert predicted["result"] is None
    assert said in predicted["changes"][incoming.name]["old"]
    assert not whole(unharmed, incoming)
    state = unharmed.pulled(incoming.name)
    assert (state["result"], state["changes"]) == (True, predicted["changes"])
    assert whole(unharmed, incoming)
    assert unharmed.pulled(incoming.name)["changes"] == {}


def test_load_that_hangs(unharmed):
    known, stopped = set(unharmed.runners().values()), []

    def stop_the_new_one():
        new = set(unharmed.runners().values()) - known
        for pid in new:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        return new

    watcher = threading.Thread(target=until, args=(stop_the_new_one, 30, 0.01))
    watcher.start()
    text = failed(unharmed, seconds=4)
    watcher.join()
    assert stopped
    assert "new:1 did not get into slot-5" in text
    assert "slot-5 still serves old:1" in text
    until(lambda: set(unharmed.runners().values()) <= known, 20, 0.1, "the stopped runner to be gone")


def test_broken_template(unharmed):
    base = {"from": "new:1", "template": BROKEN_TEMPLATE}
    list(unharmed.client.create("broken:1", **base))
    text = failed(unharmed, "broken:1")
    assert "broken:1 did not get into slot-5" in text
    assert "slot-5 still serves old:1" in text
    unharmed.client.delete("broken:1")


def test_missing_alias(unharmed):
    """Somebody deletes what is being made, right before it takes its place."""
    serving = unharmed.serving("new:1")
    serving._tell = lambda name, phase, _: phase == "aliases" and unharmed.client.delete("coder-rotate:next")
    with pytest.raises(PlatformError, match=r"cannot be given its model.*slot-5 still serves old:1"):
        serving.converge()


def test_registry_gone(unharmed):
    gone = f"127.0.0.1:{free_port()}"
    unharmed.pillar["models"]["insecure_registries"] = [gone]
    state = unharmed.rotated(f"{gone}/library/incoming:1")
    assert state["result"] is False
    assert "The registry does not answer" in state["comment"]
    # It may have answered a moment before.
    with pytest.raises(OllamaError):
        model_slots.pull(f"{gone}/library/incoming:1")
    assert "absent:1 is not in the store" in failed(unharmed, "absent:1")


def test_killed_pull(site, incoming):
    """Who pulls is killed in the middle: the old model serves on, and the next run carries on and ends the rotation."""
    before, killed, asked = state(site), threading.Event(), []

    def halfway(digest, first):
        if digest == incoming.weights:
            asked.append(first)
            killed.wait(60)

    def doomed():
        site.heard = lambda tag, data: data.get("completed") and os.kill(os.getpid(), signal.SIGKILL)
        transfer.SECONDS = 0
        site.pulled(incoming.name)

    incoming.halfway = halfway
    # Forked, so that it is bound to the same host.
    process = multiprocessing.get_context("fork").Process(target=doomed)
    process.start()
    process.join(60)
    killed.set()
    assert process.exitcode == -signal.SIGKILL
    assert not site.client.has(incoming.name)
    assert state(site) == before
    last = site.rotated(incoming.name)
    assert last["result"] is True, last["comment"]
    assert max(asked) > 0, "what had come was fetched again"
    assert whole(site, incoming)
    assert f"sha256:{site.weights('coder-rotate')}" == f"sha256:{site.weights('slot-5')}" == incoming.weights
    returned(site, before)


def returned(site, before):
    """Slot 5 has its old model again; all the while slot 1 was served by one process."""
    last = site.rotated("old:1")
    assert last["result"] is True, last["comment"]
    after, locked = state(site), site.weights("slot-1")
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    assert after[0][locked] == before[0][locked]


def test_killed_warmup(site, tmp_path, monkeypatch):
    """Nothing is loaded; the warm-up of the old table is killed while it loads slot 5, in the midst of its rotation."""
    site.hold("old:1")
    settings = tmp_path / "warmup.json"
    settings.write_text(json.dumps(model_slots.warmup_settings("node1")))
    program = [sys.executable, str(CHECKOUT / "salt/models/files/ollama-warmup"), str(settings)]
    model_slots.unload_all("node1")
    seen = []

    def kill_a_warmup(tag, data):
        if (data["name"], data["phase"]) == ("slot-5", "stage"):
            with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
                process.stdout.readline()  # the first slot is done, the second one under way
                process.kill()
            seen.append((site.ask("coder-rotate"), state(site)))

    monkeypatch.setattr(site, "heard", lambda tag, data: tag == model_slots.PHASE and kill_a_warmup(tag, data))
    last = site.rotated("new:1")
    assert last["result"] is True, last["comment"]
    ((answer, before),) = seen
    assert answer is not None
    assert before[1]["coder-rotate"] == site.weights("old:1")
    assert site.weights("coder-rotate") == site.weights("slot-5") == site.weights("new:1")
    assert model_slots.differences("node1") == {}
    after = state(site)
    assert after[0].keys() == {site.weights("slot-1"), site.weights("new:1")}
    # The next start of the unit: it finds all loaded.
    settings.write_text(json.dumps(model_slots.warmup_settings("node1")))
    assert subprocess.run(program, timeout=120, check=False).returncode == 0
    assert state(site) == after
    returned(site, before)


# -- faults of a whole host: an instance of its own each ----------------------------------------------------------


def test_no_memory(tmp_path):
    """With too little memory Ollama would unload the locked slot to make room; it is not even asked."""
    meminfo = tmp_path / "proc/meminfo"
    meminfo.parent.mkdir()
    real = Path("/proc/meminfo").read_text()
    meminfo.write_text(real)
    with private_mounts(tmp_path, f"mount --bind {meminfo} /proc/meminfo") as client:
        make(client)
        site = Site(client, tmp_path)
        site.serving("old:1").converge()
        before = state(site)
        lines = [
            line if not line.startswith("MemAvailable") else "MemAvailable: 200000 kB" for line in real.splitlines()
        ]
        meminfo.write_text("\n".join(lines) + "\n")
        serving = site.serving("new:1")
        serving._room = lambda one: footprint.refuse_without_room(
            one.model, needs(site, one), footprint.available(tmp_path / "proc", tmp_path)
        )
        with pytest.raises(PlatformError, match=r"no memory to load new:1.*slot-5 still serves old:1") as caught:
            serving.converge()
        assert isinstance(caught.value.__cause__, OutOfMemory)
        assert state(site) == before
        # So it is: asked for it, Ollama makes room with what is locked.
        with contextlib.suppress(OllamaError):
            client.load("new:1", limits=Limits(read=30, total=30))
        assert site.runners().items() != before[0].items()


def needs(site, resident):
    pillar = {"ollama": {"num_parallel": 1, "flash_attention": True}}
    from aiplatform.store import Store

    return slot_rules.needs(pillar, resident, Store(site.client).facts(resident.model))


def test_full_disk(tmp_path):
    """The store's disk is full while the new model is pulled and its names are made."""
    (tmp_path / "models").mkdir()
    with private_mounts(tmp_path, f"mount -t tmpfs -o size=700m tmpfs {tmp_path}/models") as client:
        pid = next(servers(client))
        store = Path(f"/proc/{pid}/root{tmp_path}/models")
        make(client)
        site = Site(client, tmp_path)
        site.folder = Path(f"/proc/{pid}/root{tmp_path}")
        site.serving("old:1").converge()
        before = state(site)
        filler = store / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as stream:
            while stream.write(b"\0" * (1 << 20)):
                pass
        assert "slot-5 still serves old:1" in failed(site)
        assert state(site) == before
        filler.unlink()
        site.serving("new:1").converge()
        assert site.weights("coder-rotate") == site.weights("new:1")


def test_instance_crash_and_a_second_run(tmp_path):
    with serving(tmp_path) as client:
        make(client)
        site = Site(client, tmp_path)
        site.serving("old:1").converge()
        (server,) = servers(client)
        job = site.serving("new:1")
        job._tell = lambda name, phase, _: phase == "stage" and os.kill(server, signal.SIGKILL)
        with pytest.raises(PlatformError, match="slot-5 still serves old:1"):
            job.converge()
        for pid in site.runners().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with serving(tmp_path) as client:
        site = Site(client, tmp_path)
        assert site.ask("coder-rotate") is not None
        assert site.weights("coder-rotate") == site.weights("slot-5") == site.weights("old:1")
        site.serving("new:1").converge()
        assert site.weights("coder-rotate") == site.weights("slot-5") == site.weights("new:1")


@contextlib.contextmanager
def private_mounts(folder, mount):
    """An instance that sees a mount which nobody else sees."""
    from tests.functional import local_ollama

    plain = local_ollama.launch
    wrapped = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']
    local_ollama.launch = lambda argv, *rest: plain([*wrapped, *argv], *rest)
    try:
        with serving(folder) as client:
            yield client
    finally:
        local_ollama.launch = plain
    shutil.rmtree(folder / "models", ignore_errors=True)


# -- a rotation that goes well ------------------------------------------------------------------------------------


def test_names_are_never_unresolved_while_they_move(site):
    """Ollama writes a manifest in place, and who reads in that moment finds half of it; a rename has no such moment."""
    folder = site.folder / "models"
    site.client.copy("old:1", "moving")
    blobs, stop, errors, asked = Blobs(folder), threading.Event(), [], [0]

    def hammer():
        with Client(site.client.base_url) as client:
            while not stop.is_set():
                try:
                    client.show("moving")
                except OllamaError as err:
                    errors.append(str(err))
                asked[0] += 1

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    moves = 0
    while time.monotonic() < deadline and min(moves, asked[0]) <= 20:
        source = ("new:1", "old:1")[moves % 2]
        site.client.copy(source, slots.staged("moving"))
        blobs.take_places({slots.staged("moving"): "moving"})
        moves += 1
    stop.set()
    for thread in threads:
        thread.join()
    site.client.delete("moving")
    assert (errors, moves > 20, asked[0] > 20) == ([], True, True)


def test_rotation_under_requests(site):
    """Requests on every name while slot 5 gets another model: none fails, and the locked slot's runner stays."""
    before = site.runners()
    stop, errors, answers = threading.Event(), [], []

    def client(name):
        with Client(site.client.base_url) as own:
            while not stop.is_set():
                try:
                    body = [{"role": "user", "content": "Say hello."}]
                    chunks = list(own.chat(name, body, options={"num_predict": 3}))
                    answers.append(chunks[-1].data["done"])
                except OllamaError as err:
                    errors.append(f"{name}: {err}")

    threads = [threading.Thread(target=client, args=(name,)) for name in ("llama-family", "coder-rotate", "slot-5")]
    for thread in threads:
        thread.start()
    try:
        site.serving("new:1").converge()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (errors, all(answers), len(answers) >= 3) == ([], True, True)
    locked, old, new = (site.weights(name) for name in ("slot-1", "old:1", "new:1"))
    # Ollama lists it no more a moment before its process has ended; a late request may have loaded it once more.
    until(lambda: site.runners().get(old) != before[old], 20, 0.1, "the old model's runner to end")
    after = site.runners()
    assert after == {locked: before[locked], new: after[new]}
    phases = [phase for _, phase, _ in site.phases]
    assert phases[:6] == ["stage", "load", "answer", "aliases", "move", "unload"]
    assert set(phases[6:]) <= {"unload"}
    assert site.serving("new:1").foreign() == []


def test_what_a_loaded_model_needs_is_no_more_than_was_reckoned(site):
    sizes = {row["name"].split(":")[0]: row["size"] for row in site.client.ps()}
    (resident,) = (one for one in site.table("new:1").residents if one.slot == 5)
    assert 0.3 * needs(site, resident) < sizes["slot-5"] <= needs(site, resident)
    assert set(numa.runners(next(servers(site.client))).values())
