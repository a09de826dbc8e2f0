"""Tiny random models and what transformers computes with them: the parity tests' reference.

Writes tests/fixtures/models/NAME/ (config.json, safetensors or model.gguf, golden.safetensors).
Golden tensors: `prompt` i32 [T], `logits` f32 [T, V] (one row per prompt position), `continuation`
i32 [16] (greedy, after the prompt). Everything is computed in f32 with eager attention and without
a KV cache, so a cache cannot hide a mistake.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==4.57.6 gguf==0.19.0 \
        safetensors==0.8.0 numpy==2.4.6
    OMP_NUM_THREADS=1 .venv/bin/python tests/oracle/make_goldens.py
"""

import math
import pathlib
import shutil

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "models"
PROMPT, CONTINUATION = 48, 16
SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    attn_implementation="eager",
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def randomise(model, generator, embedding=1.0):
    """Weights large enough that attention, positions and biases all show in the logits.

    `embedding`: standard deviation of embeddings. Where these are the output layer, too, logits are
    as large as the hidden size makes them, and rounding with them.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1.0 + 0.2 * noise
        elif name.endswith("sinks"):
            parameter.data = 2.0 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        elif "embed_tokens" in name:
            parameter.data = embedding * noise
        else:
            parameter.data = 1.5 * noise / math.sqrt(parameter.shape[1])


@torch.no_grad()
def golden(model, generator, path, config):
    """Logits of a random prompt and its greedy continuation, recomputed from the start for every
    token.

    False when some choice of the continuation is so close that rounding could change it: take
    another seed then.
    """
    model.eval()
    prompt = torch.randint(3, config.vocab_size, (PROMPT,), generator=generator)
    ids, margins = prompt.tolist(), []
    logits = model(prompt[None], use_cache=False).logits[0].float()
    for _ in range(CONTINUATION):
        last = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = last.topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    tensors = {
        "prompt": prompt.int(),
        "logits": logits.contiguous(),
        "continuation": torch.tensor(ids[PROMPT:], dtype=torch.int32),
    }
    save_file(tensors, path)
    print(
        f"{path.parent.name}: least greedy margin {min(margins):.3f}, "
        f"logits spread {logits.std():.2f}"
    )
    return min(margins) > 0.02


def fresh(name):
    directory = FIXTURES / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def hugging_face(
    name, seed, model_class, config, dtype=torch.float32, max_shard_size="5GB", embedding=1.0
):
    generator = torch.Generator().manual_seed(seed)
    model = model_class(config)
    randomise(model, generator, embedding)
    model.tie_weights()
    model.to(dtype)
    directory = fresh(name)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    # Read back, not `model.float()`: casting the module would leave the rotary frequencies
    # rounded to bfloat16.
    model = model_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if not golden(model, generator, directory / "golden.safetensors", config):
        hugging_face(name, seed + 100, model_class, config, dtype, max_shard_size, embedding)


def permute(rows, heads):
    """Row order of llama.cpp's converter (`LlamaModel.permute`): the two rotary halves of a head,
    interleaved."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
    )


def unpermute(rows, heads):
    return (
        rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
    )


def random_k_blocks(shape, kind, rng):
    """Random blocks of a K-quant type: every bit pattern is a valid block once its f16 scales are
    sane."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // weights, size), dtype=np.uint8)
    scale = lambda value: (
        np.full(blocks.shape[:2], value, np.float16).view(np.uint8).reshape(*blocks.shape[:2], 2)
    )
    if (
        kind == Type.Q4_K
    ):  # d, dmin, 12 bytes of scales, 128 of weights: w = d * scale * q - dmin * minimum
        blocks[..., 0:2], blocks[..., 2:4] = scale(4e-4), scale(3e-3)
    else:  # Q6_K: 128 + 64 bytes of weights, 16 signed scales, d: w = d * scale * (q - 32)
        blocks[..., -2:] = scale(6e-5)
    return blocks.reshape(shape[0], -1)


def store(writer, name, values, kind, rng):
    """Adds a tensor in type `kind`; returns what it holds after quantisation, in f32."""
    if kind in (Type.Q4_K, Type.Q6_K):
        raw = random_k_blocks(values.shape, kind, rng)
    else:
        raw = gguf.quants.quantize(values, kind)
    writer.add_tensor(name, raw, raw_dtype=kind)
    return gguf.quants.dequantize(raw, kind)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        part, suffix = rest.rsplit(".", 1)
        return f"blk.{layer}.{NAMES[part]}.{suffix}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def rope_factors(config):
    """Divisors of Llama 3.1's frequencies, as llama.cpp's converter writes them."""
    scaling, head_dim = config.rope_scaling, config.hidden_size // config.num_attention_heads
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config.rope_theta ** (i / head_dim)
        context = scaling["original_max_position_embeddings"]
        low, high, factor = (
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["factor"],
        )
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def bytes_to_letters():
    """GPT-2's printable stand-in for each byte."""
    plain = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters, extra = {}, 0
    for byte in range(256):
        letters[byte] = chr(byte) if byte in plain else chr(256 + extra)
        extra += byte not in plain
    return letters


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def add_tokenizer(writer, size):
    """A byte-level BPE of `size` tokens: three special ones, the bytes, and as many English merges
    as fit."""
    tokens = SPECIAL + list(bytes_to_letters().values())
    merges = [
        "Ġ t",
        "h e",
        "i n",
        "Ġ a",
        "e r",
        "o n",
        "Ġt he",
        "r e",
        "a n",
        "Ġ s",
        "i t",
        "Ġ o",
        "o r",
        "e s",
        "Ġ w",
        "e n",
        "Ġ c",
        "in g",
        "e d",
        "Ġ b",
        "an d",
        "Ġ f",
        "Ġ p",
        "i s",
        "a l",
        "o u",
        "Ġ m",
        "a r",
        "Ġ in",
        "Ġ d",
        "Ġo f",
        "i on",
        "a t",
        "l e",
        "Ġ h",
        "Ġ l",
    ]
    merges = merges[: size - len(tokens)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<|reserved_{i}|>" for i in range(size - len(tokens))]
    kinds = [3 if token.startswith("<|") and token.endswith("|>") else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(TEMPLATE)


def gguf_model(name, seed, model_class, config, architecture, kinds):
    """A GGUF file whose tensors have the types of `kinds` (by the end of their GGUF name)."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = model_class(config)
    randomise(model, generator)
    model.tie_weights()
    directory = fresh(name)
    writer = gguf.GGUFWriter(directory / "model.gguf", architecture)
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, config.vocab_size)
    permuted = architecture == "llama"
    if config.rope_scaling:
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for key, parameter in model.named_parameters():
        stored = gguf_name(key)
        kind = next((kind for end, kind in kinds.items() if stored.endswith(end)), Type.F32)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        heads = heads.get(stored.split(".")[-2]) if permuted else None
        values = parameter.detach().numpy()
        values = permute(values, heads) if heads else values
        values = store(writer, stored, np.ascontiguousarray(values), kind, rng)
        parameter.data = torch.from_numpy(
            np.ascontiguousarray(unpermute(values, heads) if heads else values)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.tie_weights()
    if not golden(model, generator, directory / "golden.safetensors", config):
        gguf_model(name, seed + 100, model_class, config, architecture, kinds)


def main():
    hugging_face(
        "llama",
        1,
        LlamaForCausalLM,
        LlamaConfig(
            **SMALL, rope_theta=10000.0, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=False
        ),
    )
    hugging_face("llama-tied", 2, LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True))
    hugging_face(
        "mistral",
        3,
        MistralForCausalLM,
        MistralConfig(**SMALL, sliding_window=16),
        max_shard_size="40KB",
    )
    hugging_face(
        "qwen2",
        4,
        Qwen2ForCausalLM,
        Qwen2Config(**SMALL, tie_word_embeddings=False),
        torch.bfloat16,
    )
    hugging_face("qwen3", 5, Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16, rope_theta=1e6))
    llama = SMALL | dict(vocab_size=288, hidden_size=64, intermediate_size=128, rope_theta=10000.0)
    gguf_model(
        "gguf-llama",
        6,
        LlamaForCausalLM,
        LlamaConfig(**llama, rope_scaling=LLAMA3_ROPE, tie_word_embeddings=True),
        "llama",
        {
            "token_embd.weight": Type.Q8_0,
            "attn_q.weight": Type.Q4_1,
            "attn_k.weight": Type.Q4_0,
            "attn_v.weight": Type.Q8_0,
            "attn_output.weight": Type.Q4_1,
            "ffn_gate.weight": Type.F16,
            "ffn_up.weight": Type.BF16,
            "ffn_down.weight": Type.Q4_1,
        },
    )
    qwen = SMALL | dict(
        vocab_size=288,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    gguf_model(
        "gguf-qwen2",
        7,
        Qwen2ForCausalLM,
        Qwen2Config(**qwen, tie_word_embeddings=False),
        "qwen2",
        {
            "token_embd.weight": Type.Q4_K,
            "output.weight": Type.Q6_K,
            "attn_q.weight": Type.Q4_K,
            "attn_k.weight": Type.Q6_K,
            "attn_v.weight": Type.Q6_K,
            "attn_output.weight": Type.Q4_K,
            "ffn_gate.weight": Type.Q4_K,
            "ffn_up.weight": Type.Q4_K,
            "ffn_down.weight": Type.Q6_K,
        },
    )


if __name__ == "__main__":
    main()
