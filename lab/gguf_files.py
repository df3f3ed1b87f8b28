"""Weights in GGUF files: the same ones in another quantisation, and random ones of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# The numbers with which GGUF says what most of a file's tensors are (general.file_type).
FILE_TYPES = {"f16": 1, "q8_0": 7, "q5_0": 8, "q5_1": 9, "bf16": 32}
ARCHITECTURE = "gemma3"
# A model of this shape answers in no time, with noise.
NOISE = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 1,
    "attention.head_count_kv": 1,
    "attention.key_length": 64,
    "attention.value_length": 64,
}


@dataclass(frozen=True)
class Weights:
    """What a file holds, read once for all that is computed of it: its fields (name, value, types) and its numbers."""

    fields: list[tuple[str, Any, list[Any]]]
    tensors: dict[str, Any]


def read(source: Path) -> Weights:
    """Read a file of weights, as 32-bit numbers."""
    reader = gguf.GGUFReader(source)
    fields = [
        (entry.name, entry.contents(), list(entry.types))
        for entry in reader.fields.values()
        if not entry.name.startswith("GGUF.") and entry.name != "general.architecture"
    ]
    numbers = {t.name: gguf.dequantize(np.asarray(t.data), t.tensor_type).astype(np.float32) for t in reader.tensors}
    return Weights(fields, numbers)


def requantise(weights: Weights, target: Path, kind: str) -> None:
    """Write weights to ``target`` in a quantisation (``f16``, ``q8_0`` ...)."""
    new = target.with_suffix(".new")
    writer = gguf.GGUFWriter(new, ARCHITECTURE)
    copy_fields(weights, writer, {"general.file_type": FILE_TYPES[kind]})
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    for name, data in weights.tensors.items():
        add(writer, name, data, wanted if data.ndim > 1 else gguf.GGMLQuantizationType.F32)
    finish(writer)
    new.replace(target)


def noise(weights: Weights, target: Path, seed: int) -> None:
    """Write a small model with random weights and the vocabulary of the given ones."""
    new = target.with_suffix(".new")
    writer = gguf.GGUFWriter(new, ARCHITECTURE)
    shape = {f"{ARCHITECTURE}.{key}": value for key, value in NOISE.items()}
    named = {"general.name": f"noise {seed}", "general.file_type": FILE_TYPES["f16"]}
    copy_fields(weights, writer, shape | named)
    random = np.random.default_rng(seed)
    for name, real in weights.tensors.items():
        if name.startswith("blk.") and int(name.split(".")[1]) >= NOISE["block_count"]:
            continue
        data = random.normal(0, 0.05, noise_shape(name, list(real.shape))).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F16 if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        add(writer, name, data, kind)
    finish(writer)
    new.replace(target)


def noise_shape(name: str, real: list[int]) -> list[int]:
    """The dimensions of a random model's tensor (rows, columns), from the real one's name and dimensions."""
    width, inner, head = NOISE["embedding_length"], NOISE["feed_forward_length"], NOISE["attention.key_length"]
    shapes = {
        "token_embd.weight": [real[0], width],
        "ffn_gate.weight": [inner, width],
        "ffn_up.weight": [inner, width],
        "ffn_down.weight": [width, inner],
        "attn_q.weight": [head, width],
        "attn_k.weight": [head, width],
        "attn_v.weight": [head, width],
        "attn_output.weight": [width, head],
        "attn_q_norm.weight": [head],
        "attn_k_norm.weight": [head],
    }
    return shapes.get(name.split(".", 2)[-1] if name.startswith("blk.") else name, [width])


def copy_fields(weights: Weights, writer: Any, changed: dict[str, Any]) -> None:
    """Copy a file's fields, with other values for some."""
    for name, value, types in weights.fields:
        sub_type = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, value), types[0], sub_type=sub_type)


def add(writer: Any, name: str, data: Any, kind: Any) -> None:
    """Add a tensor in this quantisation."""
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, data)
    else:
        writer.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)


def finish(writer: Any) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
