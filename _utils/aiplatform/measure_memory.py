"""How fast memory can be read, and how many tokens a second that allows a model: the roofline of decoding.

Every token reads all weights that take part in it once, so that memory allows bandwidth / bytes a token. Caches hold
a small part of the weights of models that matter; what else a token costs only lowers its rate.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError

CACHES = Path("/sys/devices/system/cpu")
MIB = 1 << 20
# At least so much for each thread, and four times the last cache for all together, as STREAM asks for.
LEAST_BYTES = 64 * MIB
CACHE_TIMES = 4
ROUNDS = 8
# No round takes nearly as long, the first one included, which fills the buffers.
ROUND_SECONDS = 60.0
_SIZES = {"K": 1 << 10, "M": MIB, "G": 1 << 30}
_ABSENT = 0x5A

# Weights in a block and bytes of a block, from ggml's type traits (ggml-common.h).
_TYPES: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q8_1": (32, 36),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "Q8_K": (256, 292), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
}  # fmt: skip
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"
_EXPERTS = re.compile(r"\.ffn_\w+_exps\.")
# Parts for pictures and sound: they are read for a prompt that has any, not for a token.
_OTHER_SENSES = re.compile(r"^(v|mm|a)\.")


@dataclass(frozen=True)
class Roofline:
    """What memory allows a model: tokens a second, from bytes that a token reads and the node's bandwidth.

    ``gigabytes_per_second`` counts 10^9 bytes; ``note`` says what of the model is not read for every token.
    """

    gigabytes_per_second: float
    bytes_per_token: int
    note: str = ""

    @property
    def tokens_per_second(self) -> float:
        """The most tokens a second that memory allows."""
        return self.gigabytes_per_second * 1e9 / self.bytes_per_token

    def share(self, tokens_per_second: float) -> float:
        """Return which part of it a rate is."""
        return tokens_per_second / self.tokens_per_second


def roofline(speed: Mapping[str, Any], reads: tuple[int, str]) -> Roofline | None:
    """Return the roofline of a model on an instance; None where one of the two is not known.

    speed
        With ``gigabytes_per_second``; empty where it is not known.
    reads
        What ``bytes_per_token`` returned.
    """
    return Roofline(speed["gigabytes_per_second"], *reads) if speed and reads[0] else None


# -- what a token reads ---------------------------------------------------------------------------------------------


def bytes_per_token(show: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many bytes of weights a token reads, and in words what it does not read.

    show
        A reply of ``/api/show`` with ``verbose``: ``tensors`` (name, type, shape) and ``model_info``.

    Of a table of embeddings one row is read, unless it is the output matrix, too. Of a mixture of experts those are
    read that are used. Returns 0 where the reply does not say enough.
    """
    tensors = {row["name"]: tensor_bytes(row) for row in show.get("tensors") or ()}
    if not tensors or None in tensors.values():
        return 0, "the model's tensors are not known"
    sizes = {name: size or 0 for name, size in tensors.items() if not _OTHER_SENSES.match(name)}
    notes = []
    if _OUTPUT in sizes and _EMBEDDING in sizes:
        notes.append(f"without the table of embeddings, {sizes.pop(_EMBEDDING) / 1e9:.2g} GB")
    used, all_experts = (_info(show, f"expert_{key}") for key in ("used_count", "count"))
    if used and all_experts:
        sizes = {name: size * used // all_experts if _EXPERTS.search(name) else size for name, size in sizes.items()}
        notes.append(f"{used} of {all_experts} experts")
    return sum(sizes.values()), ", ".join(notes)


def tensor_bytes(row: Mapping[str, Any]) -> int | None:
    """Return the bytes of a tensor by its type and shape; None for a type that is not known."""
    if row["type"] not in _TYPES:
        return None
    weights, size = _TYPES[row["type"]]
    return int(math.prod(row["shape"])) // weights * size


def _info(show: Mapping[str, Any], key: str) -> int:
    return int(next((value for name, value in (show.get("model_info") or {}).items() if name.endswith(f".{key}")), 0))


# -- how fast memory is read ----------------------------------------------------------------------------------------


def last_cache_bytes(cpus: Iterable[int], caches: Path = CACHES) -> int:
    """Return the size of the largest cache of these CPUs, all such caches together; 0 where the kernel tells none."""
    found: dict[str, int] = {}
    for cpu in cpus:
        for index in (caches / f"cpu{cpu}/cache").glob("index*"):
            try:
                text, shared = (index / "size").read_text().strip(), (index / "shared_cpu_list").read_text().strip()
            except OSError:
                continue
            level = (index / "level").read_text().strip()
            found[f"{level} {shared}"] = int(text[:-1]) * _SIZES[text[-1]] if text[-1] in _SIZES else int(text)
    highest = max((key.split()[0] for key in found), default="")
    return sum(size for key, size in found.items() if key.split()[0] == highest)


def bandwidth(cpus: Sequence[int], rounds: int = ROUNDS) -> float:
    """Return how fast these CPUs together read memory, in GB/s (10^9 bytes): the best of some rounds.

    One thread on each CPU searches a buffer of its own, which it touched first and which lies on its node by that, for
    a byte that is not there: libc's ``memchr`` reads with the widest registers and writes nothing, as decoding does.
    All begin a round together, and it ends with the last.

    Raises ``PlatformError`` where one of the CPUs, or memory for its buffer, is not to be had.
    """
    size = max(LEAST_BYTES, CACHE_TIMES * last_cache_bytes(cpus) // len(cpus))
    size -= size % mmap.PAGESIZE
    meeting = threading.Barrier(len(cpus), timeout=ROUND_SECONDS)
    with ThreadPoolExecutor(len(cpus)) as pool:
        readers = {cpu: pool.submit(_read, cpu, size, rounds, meeting) for cpu in cpus}
    _refuse_unread({cpu: error for cpu, reader in readers.items() if (error := reader.exception())})
    times = [reader.result() for reader in readers.values()]
    took = [max(end for _, end in one) - min(start for start, _ in one) for one in zip(*times, strict=True)]
    return float(size * len(cpus) / min(took) / 1e9)


def _refuse_unread(errors: Mapping[int, BaseException]) -> None:
    # Who only waited for another at the meeting knows nothing of what is wrong.
    causes = {cpu: str(err) for cpu, err in errors.items() if not isinstance(err, threading.BrokenBarrierError)}
    if errors:
        raise PlatformError(
            "The speed of memory cannot be measured",
            where=", ".join(f"CPU {cpu}" for cpu in causes or errors),
            expected=f"CPUs that this process may use, and {LEAST_BYTES // MIB} MiB or more of memory for each",
            actual="; ".join(sorted(set(causes.values()))) or f"a round took more than {ROUND_SECONDS:g} s",
            hint="numa.topology shows the CPUs that services may use; ollama:instances gives each instance its own",
        )


def _read(cpu: int, size: int, rounds: int, meeting: threading.Barrier) -> list[tuple[float, float]]:
    """Return begin and end of each round of one CPU."""
    try:
        os.sched_setaffinity(0, {cpu})
        return _rounds(size, rounds, meeting)
    except BaseException:
        meeting.abort()  # the others would wait for this one for ever
        raise


def _rounds(size: int, rounds: int, meeting: threading.Barrier) -> list[tuple[float, float]]:
    noted = []
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    with mmap.mmap(-1, size) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(first)
        ctypes.memset(address, 1, size)
        try:
            for _ in range(rounds):
                meeting.wait()
                started = time.perf_counter()
                libc.memchr(address, _ABSENT, size)
                noted.append((started, time.perf_counter()))
        finally:
            # A mapping is closed only where nothing points into it.
            del first
    return noted
