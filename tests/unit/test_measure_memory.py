"""The roofline: what a token reads, and how fast memory is."""

from __future__ import annotations

import os

import pytest

from aiplatform import measure_memory
from aiplatform.errors import PlatformError
from aiplatform.measure_memory import Roofline, bytes_per_token


def tensor(name: str, kind: str, *shape: int) -> dict:
    return {"name": name, "type": kind, "shape": list(shape)}


@pytest.mark.parametrize(
    ("kind", "size"),
    [("F32", 4096), ("BF16", 2048), ("Q8_0", 1088), ("Q4_0", 576), ("Q4_K", 576), ("Q6_K", 840), ("Q5_0", 704)],
)
def test_bytes_of_a_tensor(kind, size):
    assert measure_memory.tensor_bytes(tensor("x", kind, 256, 4)) == size


def test_a_table_of_embeddings_counts_only_where_it_is_the_output_too():
    table, output = tensor("token_embd.weight", "F16", 64, 1000), tensor("output.weight", "F16", 64, 1000)
    block = tensor("blk.0.ffn_up.weight", "F16", 64, 64)
    assert bytes_per_token({"tensors": [table, block]}) == (2 * 64 * 1064, "")
    assert bytes_per_token({"tensors": [table, output, block]}) == (
        2 * 64 * 1064, "without the table of embeddings, 0.00013 GB"
    )  # fmt: skip


def test_of_experts_those_are_read_that_are_used():
    show = {
        "tensors": [tensor("blk.0.ffn_up_exps.weight", "F16", 64, 64, 8), tensor("blk.0.ffn_up_sh.weight", "F16", 64)],
        "model_info": {"deepseek2.expert_count": 8, "deepseek2.expert_used_count": 2},
    }  # fmt: skip
    assert bytes_per_token(show) == (2 * 64 * 64 * 2 + 128, "2 of 8 experts")


def test_parts_for_pictures_are_not_read_for_a_token():
    show = {"tensors": [tensor("v.blk.0.attn_q.weight", "F16", 64), tensor("blk.0.attn_q.weight", "F16", 32)]}
    assert bytes_per_token(show)[0] == 64


@pytest.mark.parametrize("tensors", [None, [], [tensor("x", "NEW_9", 32)]])
def test_what_is_not_known_is_not_guessed(tensors):
    assert bytes_per_token({"tensors": tensors}) == (0, "the model's tensors are not known")


def test_the_share_of_what_memory_allows():
    roof = Roofline(gigabytes_per_second=100, bytes_per_token=5 * 10**9)
    assert roof.tokens_per_second == 20
    assert roof.share(12.2) == pytest.approx(0.61)


def test_each_cache_counts_once(tmp_path):
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        for index, (level, size) in enumerate((("1", "32K"), ("3", "16M"))):
            folder = tmp_path / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")
    assert measure_memory.last_cache_bytes([0, 1], tmp_path) == 16 << 20
    assert measure_memory.last_cache_bytes([0, 1, 2], tmp_path) == 32 << 20
    assert measure_memory.last_cache_bytes([3], tmp_path) == 0


def test_memory_is_read_at_a_speed_that_can_be(monkeypatch):
    """A byte that is found ends the search at once: the figure would be that of no memory there is."""
    monkeypatch.setattr(measure_memory, "CACHE_TIMES", 0)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    before = os.sched_getaffinity(0)
    assert 0.3 < measure_memory.bandwidth(cpus, rounds=2) < 1000
    assert os.sched_getaffinity(0) == before


def test_a_cpu_that_is_not_there_is_told_and_waited_for_by_nobody(monkeypatch):
    monkeypatch.setattr(measure_memory, "CACHE_TIMES", 0)
    here, nowhere = min(os.sched_getaffinity(0)), 100_000
    with pytest.raises(PlatformError, match=r"where: CPU 100000; .*Invalid argument"):
        measure_memory.bandwidth([here, nowhere], rounds=1)


def test_memory_that_is_not_to_be_had_is_told(monkeypatch):
    monkeypatch.setattr(measure_memory, "LEAST_BYTES", 1 << 62)
    with pytest.raises(PlatformError, match="Cannot allocate memory"):
        measure_memory.bandwidth(sorted(os.sched_getaffinity(0))[:1])


def test_nobody_waits_for_ever_for_a_reader_that_hangs(monkeypatch):
    monkeypatch.setattr(measure_memory, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(measure_memory.os, "sched_setaffinity", lambda *_: None)
    hangs = iter([False, True])

    def rounds(size, rounds, meeting):
        if next(hangs):
            while not meeting.broken:
                pass
        meeting.wait()

    monkeypatch.setattr(measure_memory, "_rounds", rounds)
    with pytest.raises(PlatformError, match=r"where: CPU 0, CPU 1; .*a round took more than 0.01 s"):
        measure_memory.bandwidth([0, 1])
