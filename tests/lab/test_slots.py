"""Slots on the lab: what is refused, a rotation there and back, what goes cold is warmed again without a person.

Rotation under load is of ``tests/soak``: it takes minutes.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from aiplatform.wait import until

REGISTRY = "10.89.77.10:5000/library"
OTHER = {5: f"{REGISTRY}/noise:1", 6: f"{REGISTRY}/noise-coder:2"}
# Two names of the same weights.
TWINS = (f"{REGISTRY}/gemma3-270m:q4_k_m", f"{REGISTRY}/gemma3-copy:q4_k_m")
NODE1 = "http://127.0.0.1:11434"
BROKEN = "broken:1"


@pytest.fixture(scope="module", autouse=True)
def _slots_as_before(master):
    """The rotating slots are the benchmark's choice again, however the tests end."""
    before = master.run("cat /srv/pillar/slots.sls").stdout
    yield
    put(master, before)
    master.salt("ai_server", "state.apply", "models")


def rotate(master, slot, model, *more, check=True):
    answer = master.runner("ai_platform.rotate", f"slot={slot}", f"model={model}", *more, check=check)
    if check:
        assert answer["retcode"] == 0, answer
    return answer


def slots(master):
    return {row["name"]: row for row in master.salt("ai_server", "model_slots.status")["ai_server"]}


def put(master, text):
    argv = ["docker", "exec", "-i", master.container, "tee", "/srv/pillar/slots.sls"]
    subprocess.run(argv, input=text, text=True, capture_output=True, check=True)


# -- what is refused, before anything is written or pulled --------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (f"{REGISTRY}/nobody:1", "There is no model"),
        (f"{REGISTRY}/noise", "with its tag"),
        ("coder-32k:latest", "the name of a slot or an alias"),
        ("10.89.77.10:5999/library/x:1", "does not answer"),
        (f"{REGISTRY}/gemma3-coder-270m:q5_0", "expected a"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(master, model, why):
    refused(master, 5, model, why)


def refused(master, slot, model, why, *more):
    """Ask for a rotation that cannot be: it is refused for this reason, and the pillar stays as it is."""
    before = master.run("cat /srv/pillar/slots.sls").stdout
    answer = rotate(master, slot, model, *more, check=False)
    if answer["retcode"] == 0:
        put(master, before)  # the tests that follow begin with the table that they know
    assert answer["retcode"] == 1, answer
    assert why in answer["error"], answer["error"]
    assert master.run("cat /srv/pillar/slots.sls").stdout == before


def test_weights_that_another_slot_holds_are_refused_by_any_name(master):
    """In whichever slot the benchmark put them; where in none, in slot 5."""
    holder = next((name for name, row in slots(master).items() if row["model"] in TWINS), None)
    if holder is None:
        rotate(master, 5, TWINS[0])
    slot = 6 if holder in (None, "slot-5") else 5
    refused(master, slot, TWINS[1], "holds these weights", "force=True")
    if holder is None:
        rotate(master, 5, "null")


def test_a_wrong_table_is_refused_with_its_line(master):
    text = master.run("cat /srv/pillar/slots.sls").stdout
    wrong = text.replace("5: {model: null}", "5: {model: untagged}")
    assert wrong != text
    line = wrong.splitlines().index("  5: {model: untagged}") + 1
    try:
        put(master, wrong)
        refused = master.salt("ai_server", "state.apply", "models", check=False)["ai_server"]
    finally:
        put(master, text)
    assert any(f"slots.5.model (/srv/pillar/slots.sls:{line}): is 'untagged'" in str(one) for one in refused), refused


# -- a rotation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [5, 6])
def test_a_slot_rotates_and_returns_to_the_choice(master, slot):
    before = slots(master)
    answer = rotate(master, slot, OTHER[slot], "force=True")
    phases = [row["phase"] for row in answer["phases"]["ai_server"] if row["name"] in (f"slot-{slot}", "store")]
    assert phases[0] == "pull and check"
    assert {"load", "answer"} <= set(phases), answer["phases"]
    load = sum(row["seconds"] for row in answer["phases"]["ai_server"] if row["phase"] == "load")
    assert answer["first_token"] <= load + 3, answer
    held = slots(master)
    assert held[f"slot-{slot}"]["model"] == OTHER[slot]
    assert held[f"slot-{slot}"]["loaded"]
    rotate(master, slot, "null")
    after = slots(master)
    assert after[f"slot-{slot}"]["model"] == before[f"slot-{slot}"]["model"]
    kept = [name for name in before if name != f"slot-{slot}"]
    assert {name: after[name]["pid"] for name in kept} == {name: before[name]["pid"] for name in kept}


def post(host, path, **body):
    """What the instance node1 answers to a request."""
    return host.json(["curl", "-sf", f"{NODE1}/api/{path}", "-d", json.dumps({**body, "stream": False})])


def loaded(host):
    """What node1 has loaded: the name that loaded it, and its manifest."""
    return sorted((row["name"], row["digest"]) for row in host.json(f"curl -sf {NODE1}/api/ps")["models"])


@pytest.fixture
def broken(master, ai_server):
    """A model of the store that loads and answers nothing: its template asks for a message that is not there."""
    post(ai_server, "create", model=BROKEN, **{"from": OTHER[5]}, template="{{ index .Messages 99 }}")
    yield BROKEN
    rotate(master, 5, "null")
    master.salt("ai_server", "ollama.delete", "node1", BROKEN)


def test_a_rotation_that_fails_half_way_leaves_the_old_model_and_carries_on_when_mended(master, ai_server, broken):
    before, runners = slots(master), loaded(ai_server)
    old, locked = before["slot-5"], {name: row["pid"] for name, row in before.items() if name != "slot-5"}
    answer = rotate(master, 5, broken, "force=True", check=False)
    assert answer["retcode"] == 1
    (failure,) = answer["failures"]
    assert f"{broken} did not get into slot-5" in failure["reason"], failure
    assert f"slot-5 still serves {old['model']}" in failure["reason"], failure
    assert "slot-5 load" in failure["reason"], "it failed before the new model was loaded"
    # The name means what it meant, and is answered by the process that answered before.
    assert old["digest"] in post(ai_server, "show", model="slot-5")["modelfile"]
    question = [{"role": "user", "content": "Hi"}]
    assert post(ai_server, "chat", model="slot-5", messages=question, options={"num_predict": 1})["done"]
    assert old["digest"] in ai_server.run(["cat", f"/proc/{old['pid']}/cmdline"]).stdout
    assert loaded(ai_server) == runners, "the new model is still loaded"
    post(ai_server, "create", model=broken, **{"from": OTHER[5]})
    rotate(master, 5, broken, "force=True")
    after = slots(master)
    assert (after["slot-5"]["model"], after["slot-5"]["loaded"]) == (broken, True)
    assert {name: after[name]["pid"] for name in locked} == locked


# -- what goes cold -----------------------------------------------------------------------------------------------


def test_a_slot_that_somebody_unloads_is_loaded_again(master, ai_server):
    before = slots(master)
    ai_server.run("""curl -sf http://127.0.0.1:11434/api/generate -d '{"model": "slot-5", "keep_alive": 0}'""")
    until(lambda: not slots(master)["slot-5"]["loaded"], 30, 0.5, "slot 5 to be unloaded")
    until(lambda: slots(master)["slot-5"]["loaded"], 120, 1, "slot 5 to be loaded again")
    after = slots(master)
    assert {name: after[name]["pid"] for name in after if name != "slot-5"} == {
        name: before[name]["pid"] for name in before if name != "slot-5"
    }


def test_a_slot_whose_runner_is_killed_is_loaded_again(master, ai_server):
    pid = slots(master)["slot-3"]["pid"]
    ai_server.run(f"kill -KILL {pid}")
    until(lambda: slots(master)["slot-3"]["pid"] not in (pid, None), 150, 1, "slot 3 to be loaded again")


def test_an_instance_that_is_stopped_comes_back(master, ai_server):
    ai_server.run("systemctl stop ollama-node0")
    rows = slots(master)
    assert rows["slot-1"]["loaded"], "one instance that is down does not hide the other's slots"
    assert not rows["slot-3"]["loaded"]
    until(lambda: all(row["loaded"] for row in slots(master).values()), 180, 1, "all slots loaded again")


@pytest.mark.parametrize("instance", ["node1", "node0"])
def test_the_doctor_finds_an_instance_well(master, instance):
    """Aliases are no duplicates, but the candidate is that has a second name; what an alias loaded needs no memory."""
    told = master.salt("ai_server", "ollama.doctor", instance, "out=json", check=False)["ai_server"]
    entries = {row["check"]: row for row in told["entries"]}
    assert len(entries) == 9
    # How fast it answers is the machine's.
    wrong = {name: row["actual"] for name, row in entries.items() if not row["ok"]}
    assert tuple(wrong.pop("duplicates").split(" = ")) == TWINS
    assert wrong.keys() <= {"slow generation", "throughput near zero"}, wrong


def test_status_says_all_of_each_slot(master):
    for row in master.runner("ai_platform.status")["slots"]:
        if row["slot"]:
            wanted = ("model", "digest", "instance", "node", "loaded", "context", "size", "since", "tokens_per_second")
            assert [key for key in wanted if row[key] in (None, "") or row[key] is False] == [], row
            assert row["local_share"] > 0.9
