"""Ten thousand hostile requests of somebody who has a key: every locked runner's process is the same afterwards.

``HOSTILE_REQUESTS`` is their number, ``HOSTILE_RESULTS`` a file for what was measured.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.lab import test_edge
from tests.lab.test_edge import AUTHORITY, DOMAIN, client, key, runners

__all__ = ["client", "key"]

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "10000"))
RESULTS = os.environ.get("HOSTILE_RESULTS")
# A bound; on a quiet machine it is minutes.
SECONDS = 1500
MODELS = "slot-1,slot-2,slot-3,slot-4,coder-128k,llama-family,embedding"


@pytest.mark.timeout(SECONDS + 120)
def test_ten_thousand_hostile_requests_leave_every_slot_as_it_is(client, key, ai_server, master):
    script = Path(test_edge.__file__).with_name("hostile.py").read_text()
    client.run(f"cat > /tmp/hostile.py <<'SCRIPT'\n{script}SCRIPT")
    before, began = runners(ai_server), time.time()
    command = f"python3 /tmp/hostile.py ollama-api.{DOMAIN} {AUTHORITY} {REQUESTS} {MODELS}"
    codes = json.loads(client.run(f"{command} <<'KEY'\n{key}\nKEY", timeout=SECONDS).stdout)
    seconds, after = time.time() - began, runners(ai_server)
    slots = [row for row in master.salt("ai_server", "model_slots.status")["ai_server"] if row["model"]]
    if RESULTS:
        found = {"requests": REQUESTS, "seconds": round(seconds, 1), "answers": dict(sorted(codes.items()))}
        same = sum(after.get(process) == row for process, row in before.items())
        found |= {"runners_before": len(before), "runners_the_same_after": same}
        found |= {"slots": len(slots), "slots_loaded_after": sum(row["loaded"] for row in slots)}
        Path(RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    assert sum(codes.values()) == REQUESTS
    # 404 is a model of another way of asking: an embedding model that is to chat.
    assert set(codes) <= {"200", "400", "403", "404", "405", "415", "429", "501"}
    assert codes["200"] > REQUESTS / 10
    assert len(before) >= len({row["model"] for row in slots})
    assert after == before
    assert all(row["loaded"] for row in slots)
