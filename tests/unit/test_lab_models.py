"""The lab's models: names, weights, and what is computed of them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from lab import gguf_files, models


@pytest.fixture
def source(tmp_path):
    """A small file of weights of the real one's kind."""
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, gguf_files.ARCHITECTURE)
    writer.add_uint32("gemma3.block_count", 3)
    writer.add_uint32("gemma3.embedding_length", 32)
    writer.add_uint32("general.file_type", 0)
    writer.add_string("general.name", "source")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    random = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", random.normal(size=(3, 32)).astype(np.float32))
    for block in range(3):
        writer.add_tensor(f"blk.{block}.ffn_up.weight", random.normal(size=(64, 32)).astype(np.float32))
        writer.add_tensor(f"blk.{block}.attn_norm.weight", np.ones(32, np.float32))
    gguf_files.finish(writer)
    return path


def fields(reader) -> dict:
    return {field.name: field.contents() for field in reader.fields.values() if not field.name.startswith("GGUF.")}


@pytest.mark.parametrize("kind", ["q8_0", "f16", "bf16", "q5_0", "q5_1"])
def test_another_quantisation_keeps_everything_but_the_numbers_form(source, tmp_path, kind):
    target = tmp_path / "target.gguf"
    gguf_files.requantise(gguf_files.read(source), target, kind)
    old, new = gguf.GGUFReader(source), gguf.GGUFReader(target)
    assert fields(new) == fields(old) | {"general.file_type": gguf_files.FILE_TYPES[kind]}
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert after.tensor_type.name == (kind.upper() if before.data.ndim > 1 else "F32")
        values = gguf.dequantize(after.data, after.tensor_type)
        assert np.allclose(values, before.data, atol=0.15)


def test_noise_has_the_vocabulary_and_a_shape_of_its_own(source, tmp_path):
    gguf_files.noise(gguf_files.read(source), tmp_path / "one.gguf", 1)
    gguf_files.noise(gguf_files.read(source), tmp_path / "two.gguf", 2)
    reader = gguf.GGUFReader(tmp_path / "one.gguf")
    assert fields(reader)["tokenizer.ggml.tokens"] == ["a", "b", "c"]
    assert fields(reader)["gemma3.block_count"] == gguf_files.NOISE["block_count"]
    assert {t.name for t in reader.tensors if t.name.startswith("blk.2")} == set()
    assert (tmp_path / "one.gguf").read_bytes() != (tmp_path / "two.gguf").read_bytes()


def test_each_name_is_tagged_and_single():
    names = [model.name for model in models.MODELS]
    assert len(set(names)) == len(names)
    assert all(":" in name for name in names)


def test_the_duplicate_has_the_weights_of_the_first_and_another_manifest():
    first = models.MODELS[0]
    (copy,) = [model for model in models.MODELS[1:] if model.file == first.file]
    assert models.push_recipe(copy) != models.push_recipe(first)


def test_the_name_carries_the_registry(monkeypatch):
    monkeypatch.setenv("LAB_SUBNET", "10.1.2.0/24")
    assert models.MODELS[0].full_name() == "10.1.2.10:5000/library/gemma3-270m:q4_k_m"
