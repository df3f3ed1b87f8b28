"""The editor of the API's requests, alone: bodies by chance, read as Ollama's decoder reads them."""

from __future__ import annotations

import json
import random
import subprocess
from decimal import Decimal

from lab import packages
from tests.conftest import CHECKOUT
from tests.functional.local_nginx import root

MOST = 4096
DRIVER = """
package.path = arg[1] .. "/?.lua;" .. package.path
local body = require("body")
for line in io.lines() do
  local text = line:gsub("%x%x", function(hex) return string.char(tonumber(hex, 16)) end)
  local made, why = body.rewrite(text, "num_predict", 4096)
  io.write(made and ("= " .. made.text) or ("! " .. why), "\\n")
end
"""
HOSTILE = [
    "keep_alive",
    "Keep_Alive",
    "\u212aeep_alive",
    "options",
    "OPTIONS",
    "option\u017f",
    "model",
    "Model",
    "name",
]
PLAIN = [
    "messages",
    "stream",
    "format",
    "tools",
    "think",
    "\u00fc",
    "\U0001f600",
    'quote"',
    "back\\slash",
    "num_ctx",
    "",
]


def folded(key: str) -> str:
    return key.replace("\u212a", "k").replace("\u017f", "s").lower()


def value(random_, depth=0):
    kinds = ["number", "text", "literal"] + (["list", "object"] if depth < 4 else [])
    kind = random_.choice(kinds)
    if kind == "number":
        return random_.choice([0, -1, 5, 4096, 4097, 10**25, 0.5, -1e-7])
    if kind == "text":
        return random_.choice([*HOSTILE, *PLAIN, "]}", '\\"', "\u2028", "{[", "\\u005f"])
    if kind == "literal":
        return random_.choice([None, True, False])
    if kind == "list":
        return [value(random_, depth + 1) for _ in range(random_.randrange(4))]
    keys = [
        random_.choice([*HOSTILE, *PLAIN, "seed", "num_predict", "temperature"]) for _ in range(random_.randrange(4))
    ]
    return Pairs((key, value(random_, depth + 1)) for key in keys)


class Pairs(tuple):
    """An object with its keys in order, some of them perhaps twice."""

    __slots__ = ()


def written(random_, item) -> str:
    gap = random_.choice(["", " ", "\n", "\t "])
    if isinstance(item, Pairs):
        return "{" + ",".join(f"{gap}{text(random_, k)}{gap}:{gap}{written(random_, v)}" for k, v in item) + gap + "}"
    if isinstance(item, list):
        return "[" + ",".join(gap + written(random_, one) for one in item) + gap + "]"
    return text(random_, item) if isinstance(item, str) else json.dumps(item)


def text(random_, word: str) -> str:
    """A string, some of its letters escaped."""
    plain = json.dumps(word, ensure_ascii=random_.random() < 0.5)[1:-1]
    if random_.random() < 0.3 and "\\" not in plain:
        plain = "".join(f"\\u{ord(sign):04x}" if sign < "\uffff" and random_.random() < 0.3 else sign for sign in plain)
    return f'"{plain}"'


def read(source: str):
    return json.loads(source, object_pairs_hook=Pairs, parse_int=Decimal, parse_float=Decimal)


def test_bodies_by_chance_are_edited_as_they_should_be_or_refused():
    chance, bodies = random.Random(5), []
    for _ in range(10000):
        keys = [chance.choice([*HOSTILE, *PLAIN]) for _ in range(chance.randrange(6))]
        pairs = [(key, value(chance)) for key in keys] + [("model", "slot-1")] * (chance.random() < 0.8)
        chance.shuffle(pairs)
        bodies.append(written(chance, Pairs(pairs)))
    answers = edited(bodies)
    taken = [(body, made[2:]) for body, made in zip(bodies, answers, strict=True) if made.startswith("= ")]
    assert len(taken) > 1000
    for body, made in taken:
        check(read(body), read(made))
    for body, made in zip(bodies, answers, strict=True):
        if made.startswith("! "):
            assert deserved(read(body)), f"{body}: {made}"


def edited(bodies: list[str]) -> list[str]:
    home = root()
    lines = "".join(body.encode().hex() + "\n" for body in bodies)
    argv = [str(home / "usr/bin/luajit"), "-e", f"arg = {{[1] = '{CHECKOUT}/salt/nginx/files/lua'}} {DRIVER}"]
    done = subprocess.run(
        argv, input=lines.encode(), env=packages.environment(home), capture_output=True, check=True, timeout=120
    )
    # A body that was taken is given back with its own line ends: an answer begins with one of two signs.
    return joined(done.stdout.decode(errors="replace").split("\n")[:-1])


def joined(lines: list[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if line.startswith(("= ", "! ")):
            found.append(line)
        else:
            found[-1] += "\n" + line
    return found


def check(given, made) -> None:
    """What Ollama reads of an edited body is what was asked for, but for what it must not read."""
    kept = [(key, item) for key, item in made if folded(key) != "options"]
    assert kept == [(key, item) for key, item in given if folded(key) not in ("options", "keep_alive")]
    options = dict(next(item for key, item in made if folded(key) == "options"))
    assert options.keys() <= {"seed", "temperature", "num_predict"}
    assert 0 < int(options["num_predict"]) <= MOST
    asked = dict(next((item for key, item in given if folded(key) == "options" and item), Pairs()))
    assert options | {"num_predict": 0} == {key: asked[key] for key in ("seed", "temperature") if key in asked} | {
        "num_predict": 0
    }


def deserved(given) -> bool:
    """Whether a body is ambiguous, or names no model, or has options that are no object."""
    keys = [folded(key) for key, _ in given]
    models = [item for key, item in given if folded(key) in ("model", "name")]
    options = [item for key, item in given if folded(key) == "options"]
    strange = any(not isinstance(item, Pairs) and item is not None for item in options)
    return len(set(keys)) < len(keys) or len(models) != 1 or not isinstance(models[0], str) or strange
