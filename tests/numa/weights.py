"""A language model of random weights, small enough for an emulated processor and large enough to count its pages."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

# The architecture that Ollama hands to llama.cpp, which alone maps weights into memory where it is told to.
ARCHITECTURE = "llama"
WIDTH, INNER, HEADS, BLOCKS, CONTEXT = 512, 2048, 8, 4, 64
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
KINDS = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256


def write(target: Path) -> None:
    """Write the model: 32 MiB of weights, a vocabulary of the 256 bytes."""
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    writer.add_name("pages")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([int(kind) for kind in KINDS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(1)
    for name, shape in shapes().items():
        kind = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(name, random.normal(0, 0.05, shape).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes() -> dict[str, tuple[int, ...]]:
    """The dimensions of each tensor (rows, columns)."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (len(TOKENS), WIDTH),
    }
    for block in range(BLOCKS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found[f"blk.{block}.{part}.weight"] = (WIDTH, WIDTH)
        found[f"blk.{block}.attn_norm.weight"] = found[f"blk.{block}.ffn_norm.weight"] = (WIDTH,)
        found[f"blk.{block}.ffn_gate.weight"] = found[f"blk.{block}.ffn_up.weight"] = (INNER, WIDTH)
        found[f"blk.{block}.ffn_down.weight"] = (WIDTH, INNER)
    return found
