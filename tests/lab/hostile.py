"""Requests of somebody who has a key and means harm; runs on the workstation with Python's own library only.

Usage: hostile.py HOST CA COUNT MODEL,MODEL,... < key. Prints the answers' codes with their counts, as JSON.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import sys
from collections import Counter

UNPIN = ['"keep_alive":0', '"keep\\u005falive":"0s"', '"Keep_Alive":0', '"\\u212aeep_alive":0', '"KEEP_ALIVE":-1']
LOAD = ['"num_ctx":512', '"num_thread":1', '"num\\u005fctx":4096', '"use_mmap":false', '"num_batch":8', '"num_gpu":1']
OPTIONS = ["options", "Options", "\\u006fptions", "option\\u017f"]
PATHS = ["/api/generate", "/api/chat", "/api/embed", "/v1/chat/completions", "/v1/completions"]
CLOSED = ["/api/delete", "/api/pull", "/api/create", "/api/copy", "/api/push", "/api/ps", "//api/delete"]
CLOSED += ["/api/./delete", "/api/%64elete", "/api/chat/../delete", "/API/DELETE", "/_instance/node1/api/delete"]


def body(chance: random.Random, models: list[str]) -> str:
    """A request that unloads or reloads a slot, were it taken as it is. Little is generated: that would take long."""
    parts = [f'"model":"{chance.choice(models)}"', '"max_tokens":1']
    parts += chance.sample(UNPIN, chance.randrange(3))
    if chance.random() < 0.8:
        load = ",".join(chance.sample(LOAD, chance.randrange(1, 4)))
        parts.append(f'"{chance.choice(OPTIONS)}":{{{load}}}')
    if chance.random() < 0.2:
        parts.append('"model":"slot-1"')
    chance.shuffle(parts)
    text = "{" + ",".join(parts) + "}"
    return text[:-3] if chance.random() < 0.05 else text


def request(chance: random.Random, models: list[str]) -> tuple[str, str, str, dict[str, str]]:
    """Method, path, body and headers of one request."""
    if chance.random() < 0.3:
        method = chance.choice(["POST", "DELETE", "GET", "PUT"])
        return method, chance.choice(CLOSED), '{"model":"slot-1","name":"slot-1"}', {}
    headers = {"Content-Encoding": "gzip"} if chance.random() < 0.05 else {}
    # Without a prompt the native paths only load, which is what a thief of slots wants.
    return "POST", chance.choice(PATHS[:2] if chance.random() < 0.9 else PATHS), body(chance, models), headers


def main() -> None:
    """Send them over one connection, opened anew whenever it is closed."""
    host, authority, count, models = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(",")
    key = sys.stdin.read().strip()
    context = ssl.create_default_context(cafile=authority)
    chance, codes = random.Random(7), Counter()
    connection = http.client.HTTPSConnection(host, timeout=120, context=context)
    for _ in range(count):
        method, path, text, headers = request(chance, models)
        try:
            connection.request(method, path, text.encode(), headers | {"Authorization": f"Bearer {key}"})
            reply = connection.getresponse()
            reply.read()
            codes[str(reply.status)] += 1
        except (http.client.HTTPException, OSError) as err:
            codes[type(err).__name__] += 1
            connection.close()
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
