"""The API edge in a real NGINX, before stub instances: who gets in, what gets through, and how long it takes."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiplatform.wait import until
from tests.functional.local_nginx import KEYS, WHO, LocalNginx, Stub, head, parsed

MOST = 4096
OFFERED = ["slot-1", "slot-3", "coder-128k", "coder-32k", "embed"]
STORED = [*OFFERED, "gemma3:270m"]
OPEN = ["/", "/api/version", "/api/tags", "/v1/models"]
GENERATING = {
    "/api/generate": "num_predict",
    "/api/chat": "num_predict",
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
CLOSED = ["pull", "push", "create", "delete", "copy", "ps", "me", "signout", "status", "experimental/aliases"]
TRICKS = [
    "//api/pull",
    "/api//pull",
    "/api/./pull",
    "/api/chat/../pull",
    "/api/%70ull",
    "/%61pi/pull",
    "/api/tags/..%2fpull",
    "/api/tags%2f..%2fpull",
    "/api/chat/..;/pull",
    "/api\\pull",
    "/API/CHAT",
    "/api/chat/",
    "/api/blobs/sha256:00",
    "/v1/messages",
    "/v1/images/generations",
    "/v1/models/../../api/pull",
    "/_instance/node1/api/ps",
]


@pytest.fixture(scope="module")
def stubs():
    found = {name: Stub(STORED) for name in ("node1", "node0", "vault")}
    yield found
    for stub in found.values():
        stub.shutdown()
        stub.server_close()


@pytest.fixture(scope="module")
def edge(stubs, tmp_path_factory):
    server = LocalNginx(
        tmp_path_factory.mktemp("edge"),
        {name: stub.port for name, stub in stubs.items()},
        requests_per_second=100000,
        burst=100000,
        connections=1000,
        timeout=3,
    )
    server.prepare()
    server.start()
    yield server
    server.stop()


def received(stubs):
    return [row for stub in stubs.values() for row in stub.seen]


# -- who gets in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*OPEN, *GENERATING, "/api/pull", "/nothing", "/_instance/node1/api/tags"])
def test_without_a_key_nothing_is_answered(edge, stubs, path):
    before = len(received(stubs))
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        status, headers, body = edge.ask(method, path, {"model": "slot-1"}, key=None)
        assert (status, headers["content-type"]) == (401, "application/json")
        assert "Bearer" in headers["www-authenticate"]
        assert "key" in json.dumps(json.loads(body)["error"])
    assert len(received(stubs)) == before


@pytest.mark.parametrize(
    "given",
    [
        "Bearer " + KEYS["all"].upper(),
        "bearer " + KEYS["all"],
        "Bearer  " + KEYS["all"],
        "Bearer " + KEYS["all"] + "a",
        "Bearer " + KEYS["all"][:-1],
        "Basic " + KEYS["all"],
        KEYS["all"],
        "Bearer",
        "Bearer " + "x" * 2000,
    ],
)
def test_a_key_is_compared_exactly(edge, given):
    assert edge.ask("GET", "/api/tags", key=None, Authorization=given)[0] == 401


def test_two_keys_in_one_request_are_none(edge):
    head = f"GET /api/tags HTTP/1.1\r\nHost: ollama-api.acme.test\r\nAuthorization: Bearer {KEYS['all']}\r\n"
    answer = edge.raw(f"{head}Authorization: Bearer wrong\r\nConnection: close\r\n\r\n".encode())
    assert parsed(answer)[0] in (400, 401)


def test_a_key_reaches_its_slots_and_no_other(edge, stubs):
    for name, wanted in {
        "slot-3": 200,
        "coder-128k:latest": 200,
        "coder-32k": 403,
        "slot-1": 403,
        "embed": 403,
    }.items():
        for path in ("/api/chat", "/v1/chat/completions"):
            status, _, body = edge.ask("POST", path, {"model": name, "messages": []}, key="coder")
            assert status == wanted, body
    assert names(edge.ask("GET", "/api/tags", key="coder")) == ["slot-3:latest", "coder-128k:latest"]
    assert edge.ask("GET", "/v1/models/slot-1", key="coder")[0] == 403


def test_a_revoked_key_is_out_within_a_second(edge):
    assert edge.ask("GET", "/api/tags", key="coder")[0] == 200
    edge.write_keys({"all": None})
    begin = time.monotonic()
    until(lambda: edge.ask("GET", "/api/tags", key="coder")[0] == 401, 1, 0.05, "the key to be refused")
    assert edge.ask("GET", "/api/tags")[0] == 200
    assert time.monotonic() - begin < 1.2
    edge.write_keys(WHO)


def test_a_new_key_is_good_at_once(edge):
    others = {name: slots for name, slots in WHO.items() if name != "coder"}
    for _ in range(5):
        edge.write_keys(others)
        until(lambda: edge.ask("GET", "/api/tags", key="coder")[0] == 401, 1, 0.05, "the key to be refused")
        edge.write_keys(WHO)
        assert edge.ask("GET", "/api/tags", key="coder")[0] == 200


def test_damaged_keys_let_nobody_in(edge):
    good = (edge.folder / "keys.json").read_text()
    edge.write("keys.json", good[:-3])
    until(lambda: edge.ask("GET", "/api/tags")[0] == 401, 2, 0.05, "everybody to be refused")
    edge.write("keys.json", good)
    until(lambda: edge.ask("GET", "/api/tags")[0] == 200, 2, 0.05, "the key to be taken")


def test_no_key_is_logged(edge):
    edge.ask("GET", f"/api/tags?key={KEYS['all']}", key="all")
    edge.ask("GET", "/api/tags", key=None, Authorization="Bearer wrong-" + KEYS["coder"])
    edge.ask("POST", "/api/chat", b"{", key="coder")
    logs = "".join(path.read_text() for path in edge.folder.glob("*.log"))
    assert 'key="coder"' in logs
    assert not any(key in logs for key in KEYS.values())


# -- which way ----------------------------------------------------------------------------------------------------


def names(answer) -> list[str]:
    data = json.loads(answer[2])
    return [row.get("name") or row["id"] for row in data.get("models") or data["data"]]


def test_a_request_goes_to_the_instance_of_its_model(edge, stubs):
    for name, instance in {"slot-1": "node1", "llama-family": "node1", "coder-32k": "node0", "embed": "node0"}.items():
        for path in [*GENERATING, "/api/embed", "/v1/embeddings", "/api/show"]:
            before = len(stubs[instance].seen)
            assert edge.ask("POST", path, {"model": name})[0] == 200
            assert len(stubs[instance].seen) == before + 1
            assert stubs[instance].last()["path"] == path
    assert edge.ask("GET", "/v1/models/coder-32k")[0] == 200
    assert stubs["node0"].last()["path"] == "/v1/models/coder-32k"


def test_what_is_not_offered_is_unknown(edge):
    for name in ("gemma3:270m", "nothing", "slot-9", "", "slot-1:other", "SLOT-1"):
        status, _, body = edge.ask("POST", "/api/chat", {"model": name})
        assert status == 404
        assert "not found" in json.loads(body)["error"]
        status, _, body = edge.ask("POST", "/v1/chat/completions", {"model": name})
        assert (status, json.loads(body)["error"]["code"]) == (404, 404)


def test_lists_hold_what_is_offered_byte_by_byte(edge):
    wanted = [f"{name}:latest" for name in OFFERED]
    assert names(edge.ask("GET", "/api/tags")) == wanted
    assert names(edge.ask("GET", "/v1/models")) == wanted
    assert b'"size": 12345678901234, "families": null, "tags": []' in edge.ask("GET", "/api/tags")[2]


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl, which speaks HTTP/2")
@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/api/tags", [], "coder-32k:latest"),
        ("/api/tags", ["--head"], "HTTP/2 200"),
        ("/api/chat", ["--data", '{"model":"slot-1","keep_alive":0}'], "hello"),
        ("/api/pull", ["--data", '{"model":"slot-1"}'], "not offered"),
    ],
)
def test_http2_is_spoken(edge, stubs, path, more, expected):
    name = "ollama-api.acme.test"
    argv = ["curl", "-s", "-i", "--http2", "--cacert", f"{edge.folder}/authority.pem", *more]
    argv += ["--resolve", f"{name}:{edge.https}:127.0.0.1", "-H", f"Authorization: Bearer {KEYS['all']}"]
    done = subprocess.run([*argv, f"https://{name}:{edge.https}{path}"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HTTP/2 ")
    assert expected in done.stdout
    assert "alive" not in stubs["node1"].last()["body"].decode()


def test_no_header_of_the_client_reaches_an_instance(edge, stubs):
    edge.ask("POST", "/api/chat", {"model": "slot-1"}, Cookie="a=b", X_Forwarded_For="1.2.3.4", Accept_Encoding="gzip")
    assert set(stubs["node1"].last()["headers"]) <= {"Host", "Content-Type", "Content-Length", "Connection"}
    assert stubs["node1"].last()["headers"]["Host"] == "localhost"


# -- what gets through --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*(f"/api/{name}" for name in CLOSED), *TRICKS])
def test_closed_paths_stay_closed_however_they_are_written(edge, stubs, path):
    before = len(received(stubs))
    for method, query in itertools.product(("GET", "POST", "DELETE", "HEAD"), ("", "?x=/api/tags")):
        assert edge.ask(method, path + query, {"model": "slot-1"})[0] in (400, 403, 404, 405)
    assert len(received(stubs)) == before


def test_wrong_methods_are_refused(edge):
    for path in GENERATING:
        assert edge.ask("GET", path)[0] == 405
    assert edge.ask("POST", "/api/tags", {})[0] == 403
    assert edge.ask("DELETE", "/v1/models/slot-1")[0] == 403


def sent(edge, stubs, path: str, text: str) -> str:
    status, _, body = edge.ask("POST", path, text.encode())
    assert status == 200, body
    return stubs["node1"].last()["body"].decode()


UNPIN = [
    '"keep_alive":0',
    '"keep\\u005falive":0',
    '"Keep_Alive":"0s"',
    '"\\u212aeep_alive":0',
    '"\u212aeep_alive":0',
    '"KEEP_ALIVE" : {"a":[1,{"b":2}]}',
    '"keep_alive":[{"]":"}"}]',
]


@pytest.mark.parametrize("member", UNPIN)
@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions"])
def test_keep_alive_is_taken_out_and_the_rest_stays_as_it_was(edge, stubs, path, member):
    rest = '"messages":[{"content":"keep_alive \\"}, "}],"tools":[],"n":null,"big":123456789012345678901,"f":1.50'
    text = sent(edge, stubs, path, f'{{ "model":"slot-1", {member} , {rest} }}')
    assert rest in text
    assert "alive" not in text.replace("keep_alive \\", "").lower()


@pytest.mark.parametrize("key", ["options", "Options", "\\u006fptions", "option\u017f"])
def test_load_options_are_taken_out_and_sampling_stays(edge, stubs, key):
    load = '"num_ctx":99,"num\\u005fthread":1,"num_batch":8,"num_gpu":0,"main_gpu":1,"use_mmap":false,"numa":true'
    sampling = '"temperature":0.10,"stop":["a",[]],"seed":12345678901234567890'
    text = sent(edge, stubs, "/api/chat", f'{{"model":"slot-1","{key}":{{{load},{sampling}}}}}')
    assert json.loads(text)["options"].keys() == {"temperature", "stop", "seed", "num_predict"}
    assert sampling in text


@pytest.mark.parametrize(("path", "limit"), GENERATING.items())
def test_every_answer_has_an_end(edge, stubs, path, limit):
    limits = dict.fromkeys(["-1", "0", "9e9", "1e1", "null", '"5"', "99999999999999999999"], MOST) | {"5": 5}
    for given, wanted in limits.items():
        member = f'"options":{{"num_predict":{given}}}' if limit == "num_predict" else f'"{limit}":{given}'
        data = json.loads(sent(edge, stubs, path, f'{{"model":"slot-1",{member}}}'))
        assert (data["options"]["num_predict"] if limit == "num_predict" else data[limit]) == wanted
    data = json.loads(sent(edge, stubs, path, '{"model":"slot-1"}'))
    assert (data["options"]["num_predict"] if limit == "num_predict" else data[limit]) == MOST


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"slot-1"',
        b'{"model":"slot-1"}{"keep_alive":0}',
        b'{"model":"slot-1"} x',
        b'{"model":"slot-1","model":"coder-32k"}',
        b'{"model":"slot-1","Model":"coder-32k"}',
        b'{"model":"slot-1","name":"coder-32k"}',
        b'{"model":"slot-1","options":{},"OPTIONS":{"num_ctx":1}}',
        b'{"model":"slot-1","options":[]}',
        b'{"model":"slot-1","options":"num_ctx"}',
        b'{"model":["slot-1"]}',
        b'{"model":null}',
        b'{"messages":[]}',
        b'{"model":"slot-1","x":"unfinished}',
        b'{"model":"slot-1","x":[1}]}',
        b'{"model":"slot-1","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xef\xbb\xbf" + b'{"model":"slot-1"}',
        b'{"model":"slot-1",}',
        b'{"model" "slot-1"}',
        b"{'model':'slot-1'}",
        b'{"model":"slot-1","a\\u00g0":1}',
    ],
)
def test_what_is_ambiguous_or_broken_is_refused(edge, stubs, body):
    before = len(received(stubs))
    status, _, answer = edge.ask("POST", "/api/chat", body)
    assert status == 400
    assert json.loads(answer)["error"]
    assert len(received(stubs)) == before


def test_compressed_requests_are_refused(edge, stubs):
    before = len(received(stubs))
    body = gzip.compress(b'{"model":"slot-1","keep_alive":0}')
    assert edge.ask("POST", "/api/chat", body, Content_Encoding="gzip")[0] == 415
    assert edge.ask("POST", "/api/chat", b'{"model":"slot-1"}', Content_Encoding="br, identity")[0] == 415
    assert len(received(stubs)) == before


def test_a_body_in_chunks_is_looked_at_whole(edge, stubs):
    pieces = [b'{"model":"slot-1","keep', b'_alive":0,"options":{"num_c', b'tx":1}}']
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    status, _, _ = parsed(edge.raw(head("Transfer-Encoding: chunked", "Connection: close") + body))
    assert status == 200
    assert json.loads(stubs["node1"].last()["body"]) == {"model": "slot-1", "options": {"num_predict": MOST}}


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 18", "Transfer-Encoding: chunked"],
        ["Content-Length: 18", "Content-Length: 5"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Content-Length: +18"],
        ["Content-Length : 18"],
    ],
)
def test_no_second_request_is_smuggled(edge, stubs, lines):
    before = len(received(stubs))
    hidden = b"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    answer = edge.raw(head(*lines, "Connection: close") + b'{"model":"slot-1"}' + b"0\r\n\r\n" + hidden)
    seen = received(stubs)[before:]
    assert not [row for row in seen if row["path"] != "/api/chat"]
    assert answer == b"" or parsed(answer)[0] in (200, 400, 501)


def test_a_large_body_is_looked_at_too(edge, stubs):
    picture = "A" * (3 << 20)
    text = sent(edge, stubs, "/api/chat", f'{{"model":"slot-1","images":["{picture}"],"keep_alive":0}}')
    assert picture in text
    assert "keep_alive" not in text


def test_too_large_a_body_is_refused_in_json(edge):
    answer = edge.raw(head("Content-Length: 200000000", "Connection: close"))
    status, headers, body = parsed(answer)
    assert (status, headers["content-type"]) == (413, "application/json")
    assert json.loads(body)["error"]


# -- streams, faults, limits --------------------------------------------------------------------------------------


def test_a_stream_arrives_piece_by_piece(edge, stubs):
    def slowly(request):
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for number in range(4):
            request.wfile.write(b"8\r\npiece %d\n\r\n" % number)
            request.wfile.flush()
            time.sleep(0.2)
        request.wfile.write(b"0\r\n\r\n")
        return True

    stubs["node1"].answer = slowly
    try:
        with edge.connect() as connection:
            body = b'{"model":"slot-1"}'
            connection.sendall(
                head(f"Content-Length: {len(body)}", "Accept-Encoding: gzip", "Connection: close") + body
            )
            times, answer = [], b""
            while piece := connection.recv(65536):
                answer += piece
                times += [time.monotonic()] * piece.count(b"piece")
    finally:
        stubs["node1"].answer = None
    assert len(times) == 4
    assert all(0.1 < later - earlier < 0.4 for earlier, later in itertools.pairwise(times))


def test_an_instance_that_is_down_is_named_and_the_other_goes_on(tmp_path, stubs):
    gone = Stub([])
    gone.shutdown()
    gone.server_close()
    ports = {"node0": gone.port, "node1": stubs["node1"].port, "vault": 9}
    server = LocalNginx(tmp_path, ports, requests_per_second=1, burst=2)
    server.prepare()
    server.start()
    try:
        status, headers, body = server.ask("POST", "/v1/chat/completions", {"model": "coder-32k"})
        assert (status, headers["content-type"]) == (502, "application/json")
        assert "instance" in json.loads(body)["error"]["message"]
        assert "slot-1:latest" in names(server.ask("GET", "/api/tags"))
        answers = [server.ask("GET", "/", key=key)[0] for key in ["all"] * 10 + [None] * 10]
        assert answers.count(429) >= 8
        assert {200, 401} >= set(answers) - {429}
        assert json.loads(server.ask("GET", "/")[2])["error"]
    finally:
        server.stop()


def test_a_key_asks_no_more_at_once_than_it_may_and_others_go_on(tmp_path, stubs):
    ports = {name: stub.port for name, stub in stubs.items()}
    server = LocalNginx(tmp_path, ports, requests_per_second=100000, burst=100000, connections=2)
    server.prepare()
    server.start()
    over = threading.Event()
    stubs["node1"].answer = lambda _request: not over.wait(30)
    try:
        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(server.ask, "POST", "/api/chat", {"model": "slot-1"}) for _ in range(6)]
            try:
                until(lambda: sum(one.done() for one in asked) == 4, 10, 0.05, "all but two to be refused")
                assert server.ask("POST", "/api/chat", {"model": "slot-3"}, key="coder")[0] == 200
            finally:
                over.set()
            answers = [one.result() for one in asked]
    finally:
        stubs["node1"].answer = None
        server.stop()
    assert sorted(status for status, _, _ in answers) == [200] * 2 + [429] * 4
    assert all("too many" in json.loads(body)["error"] for status, _, body in answers if status == 429)
