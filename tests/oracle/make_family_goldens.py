"""Tiny random models of the families with differences of their own, and of rotary scalings beyond
the trained context. Golden files and versions are those of make_goldens.py, which this extends.

    OMP_NUM_THREADS=1 .venv/bin/python tests/oracle/make_family_goldens.py [NAME...]
"""

import re
import sys

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Type
from make_goldens import (
    NAMES,
    SMALL,
    add_tokenizer,
    fresh,
    golden,
    hugging_face,
    permute,
    randomise,
    store,
    unpermute,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

# Three KV heads and three blocks of feed-forward columns: what one, two and three ranks can share.
WIDE = SMALL | dict(
    hidden_size=96,
    intermediate_size=96,
    num_attention_heads=6,
    num_key_value_heads=3,
    pad_token_id=0,
)
EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")
STACKS = {
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
}
MORE_NAMES = NAMES | {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate": "ffn_gate_inp",
}
GEMMA_NAMES = MORE_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def embedding_of(config):
    """Standard deviation of embeddings such that logits come out alike."""
    return 0.2 if config.tie_word_embeddings else 1.0


def stored_name(name, names):
    """What GGUF files call a parameter that is no expert's."""
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        part, suffix = rest.rsplit(".", 1)
        return f"blk.{layer}.{names[part]}.{suffix}"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def stacks(model, names):
    """GGUF name of each tensor, and the parameters in it: those of all experts are one."""
    found = {}
    for name, parameter in model.named_parameters():
        expert = EXPERT.fullmatch(name)
        if expert:
            layer, _, part = expert.groups()
            found.setdefault(f"blk.{layer}.{STACKS[part]}.weight", []).append(parameter)
        else:
            found[stored_name(name, names)] = [parameter]
    return found


def write_metadata(writer, name, config, extra):
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
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    extra(writer)
    add_tokenizer(writer, config.vocab_size)


def gguf_family(name, seed, model_class, config, architecture, kinds, extra):
    """A GGUF file as llama.cpp's converter lays it out. `extra` adds the family's metadata and
    tensors."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = model_class(config)
    randomise(model, generator, embedding_of(config))
    model.tie_weights()
    directory = fresh(name)
    writer = gguf.GGUFWriter(directory / "model.gguf", architecture)
    write_metadata(writer, name, config, extra)
    is_gemma = architecture == "gemma3"
    permuted = architecture in ("llama", "smollm3")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for stored, parameters in stacks(model, GEMMA_NAMES if is_gemma else MORE_NAMES).items():
        usual = Type.F32 if parameters[0].ndim == 1 else Type.F16
        kind = next((kind for end, kind in kinds.items() if stored.endswith(end)), usual)
        values = np.stack([parameter.detach().numpy() for parameter in parameters])
        of_heads = heads.get(stored.split(".")[-2]) if permuted else None
        if of_heads:
            values = permute(values[0], of_heads)[None]
        # Gemma's norms are stored less one, and llama.cpp's converter adds it.
        one = 1.0 if is_gemma and stored.endswith("norm.weight") else 0.0
        values = values + one if one else values
        values = values if len(parameters) > 1 else values[0]
        values = store(writer, stored, np.ascontiguousarray(values), kind, rng)
        values = values if len(parameters) > 1 else values[None]
        for parameter, kept in zip(parameters, values):
            kept = unpermute(kept, of_heads) if of_heads else kept
            kept = kept - one if one else kept
            parameter.data = torch.from_numpy(np.array(kept, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.tie_weights()
    if not golden(model, generator, directory / "golden.safetensors", config):
        gguf_family(name, seed + 100, model_class, config, architecture, kinds, extra)


GPT_OSS_NAMES = MORE_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
}


def split_gpt_oss(name, parameter):
    """The tensors that llama.cpp's converter makes of a parameter of gpt-oss: name and values.
    Inputs come last there, and gates and up projections stand apart."""
    values = parameter.detach().numpy()
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    last = name.rsplit(".", 1)[-1]
    if last == "sinks":
        return [(f"blk.{layer}.attn_sinks.weight", values)]
    if "experts" not in name:
        return [(stored_name(name, GPT_OSS_NAMES), values)]
    suffix = "bias" if last.endswith("bias") else "weight"
    values = values if suffix == "bias" else values.swapaxes(-1, -2)
    rows = -1 if suffix == "bias" else -2
    if last.startswith("down"):
        return [(f"blk.{layer}.ffn_down_exps.{suffix}", values)]

    def pick(first):
        return values.take(range(first, values.shape[rows], 2), axis=rows)

    return [
        (f"blk.{layer}.ffn_gate_exps.{suffix}", pick(0)),
        (f"blk.{layer}.ffn_up_exps.{suffix}", pick(1)),
    ]


def join_gpt_oss(name, parameter, kept):
    """Puts what was stored of a parameter back."""
    if len(kept) == 1:
        values = kept[0].swapaxes(-1, -2) if "experts" in name and kept[0].ndim == 3 else kept[0]
    else:
        axis = kept[0].ndim - (1 if name.endswith("bias") else 2)
        values = np.stack(kept, axis + 1)
        shape = list(kept[0].shape)
        shape[axis] *= 2
        values = values.reshape(shape)
        values = values if name.endswith("bias") else values.swapaxes(-1, -2)
    parameter.data = torch.from_numpy(np.array(values, np.float32))


def gguf_gpt_oss(name, seed, kinds):
    kinds_of_layers = ["sliding_attention", "full_attention"]
    config = GptOssConfig(
        **SMALL
        | dict(vocab_size=288, intermediate_size=96, num_attention_heads=6, num_key_value_heads=3)
        | dict(head_dim=16, num_local_experts=5, num_experts_per_tok=2, sliding_window=16)
        | dict(layer_types=kinds_of_layers, max_position_embeddings=128, rope_theta=1e4)
        | dict(rope_scaling=yarn(beta_fast=32.0, beta_slow=1.0, truncate=False))
        | dict(tie_word_embeddings=False, pad_token_id=0)
    )
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    model = GptOssForCausalLM(config)
    randomise(model, generator)
    directory = fresh(name)
    writer = gguf.GGUFWriter(directory / "model.gguf", "gpt-oss")

    def extra(writer):
        writer.add_expert_count(5)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(96)
        writer.add_sliding_window(16)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    write_metadata(writer, name, config, extra)
    for key, parameter in model.named_parameters():
        kept = []
        for stored, values in split_gpt_oss(key, parameter):
            is_vector = parameter.ndim == 1 or stored.endswith("bias")
            usual = Type.F32 if is_vector else Type.F16
            kind = next((kind for end, kind in kinds.items() if stored.endswith(end)), usual)
            kept.append(store(writer, stored, np.ascontiguousarray(values), kind, rng))
        join_gpt_oss(key, parameter, kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not golden(model, generator, directory / "golden.safetensors", config):
        gguf_gpt_oss(name, seed + 100, kinds)


def yarn(**more):
    return dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32) | more


def long_factors(pairs):
    rng = np.random.default_rng(77)
    short, long = rng.uniform(1.0, 1.5, pairs), rng.uniform(1.5, 6.0, pairs)
    return [round(float(x), 4) for x in short], [round(float(x), 4) for x in long]


def phi3_config(**more):
    # Three quarters of a head of 16 are rotated: six pairs. A prompt of 48 tokens is beyond the
    # pre-trained 32, so transformers takes the long factors for all of it.
    short, long = long_factors(6)
    return Phi3Config(
        **WIDE
        | dict(max_position_embeddings=128, original_max_position_embeddings=32)
        | dict(partial_rotary_factor=0.75, sliding_window=None, tie_word_embeddings=True)
        | dict(rope_scaling=dict(type="longrope", short_factor=short, long_factor=long))
        | more
    )


def gemma3_config(**more):
    kinds = ["sliding_attention", "full_attention"] * 2
    return Gemma3TextConfig(
        **WIDE
        | dict(num_hidden_layers=4, layer_types=kinds, sliding_window=16, head_dim=16)
        | dict(hidden_size=32)
        | dict(query_pre_attn_scalar=20, rope_theta=1e6, rope_local_base_freq=1e4)
        | dict(rope_scaling=dict(rope_type="linear", factor=8.0))
        | more
    )


def smollm3_config(**more):
    return SmolLM3Config(
        **WIDE
        | dict(num_hidden_layers=4, rope_theta=5e6, tie_word_embeddings=True)
        | dict(hidden_size=32, head_dim=16)
        | more
    )


def mixtral_config(**more):
    experts = dict(num_local_experts=5, num_experts_per_tok=2)
    narrow = dict(hidden_size=32, head_dim=16, sliding_window=None)
    return MixtralConfig(**WIDE | experts | narrow | more)


def qwen3_moe_config(**more):
    experts = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=96)
    return Qwen3MoeConfig(
        **WIDE
        | experts
        | dict(hidden_size=32, head_dim=16, norm_topk_prob=True, rope_theta=1e6)
        | more
    )


def directories():
    """Name, seed, class, configuration of models in directories."""
    long = dict(max_position_embeddings=128, head_dim=32, rope_theta=1e4)
    yield "yarn", 21, Qwen3ForCausalLM, Qwen3Config(**SMALL | long | dict(rope_scaling=yarn()))
    # DeepSeek's two factors, which do not cancel out here, and a ramp between whole pairs.
    deepseek = yarn(mscale=1.0, mscale_all_dim=0.5, beta_fast=8.0, beta_slow=1.0, truncate=False)
    llama = LlamaConfig(**SMALL | long | dict(rope_scaling=deepseek))
    yield "yarn-deepseek", 22, LlamaForCausalLM, llama
    yield "mixtral", 23, MixtralForCausalLM, mixtral_config()
    yield "qwen3-moe", 24, Qwen3MoeForCausalLM, qwen3_moe_config()
    shares = qwen3_moe_config(norm_topk_prob=False)
    yield "qwen3-moe-shares", 25, Qwen3MoeForCausalLM, shares
    yield "gemma3", 26, Gemma3ForCausalLM, gemma3_config()
    yield "phi3", 27, Phi3ForCausalLM, phi3_config()
    yield "smollm3", 28, SmolLM3ForCausalLM, smollm3_config()


def files():
    """Arguments of `gguf_family`."""
    vocabulary = dict(vocab_size=288)

    def experts(writer, count, used, width):
        writer.add_expert_count(count)
        writer.add_expert_used_count(used)
        writer.add_expert_feed_forward_length(width)

    mixed = {
        "token_embd.weight": Type.Q8_0,
        "ffn_gate_exps.weight": Type.Q4_1,
        "ffn_up_exps.weight": Type.Q4_0,
        "ffn_down_exps.weight": Type.Q8_0,
        "attn_q.weight": Type.Q8_0,
    }
    yield (
        "gguf-mixtral",
        31,
        MixtralForCausalLM,
        mixtral_config(**vocabulary),
        "llama",
        mixed,
        lambda writer: experts(writer, 5, 2, 96),
    )
    yield (
        "gguf-qwen3-moe",
        32,
        Qwen3MoeForCausalLM,
        qwen3_moe_config(**vocabulary),
        "qwen3moe",
        mixed,
        lambda writer: experts(writer, 6, 3, 96),
    )

    def yarn_metadata(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    yield (
        "gguf-yarn",
        33,
        Qwen3ForCausalLM,
        Qwen3Config(
            **SMALL
            | vocabulary
            | dict(max_position_embeddings=128, head_dim=32, rope_theta=1e4, rope_scaling=yarn())
        ),
        "qwen3",
        {"token_embd.weight": Type.Q8_0},
        yarn_metadata,
    )

    def gemma3_metadata(writer):
        writer.add_sliding_window(16)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    # Files do not say what queries are scaled by: it is the head's width but in the largest model.
    yield (
        "gguf-gemma3",
        34,
        Gemma3ForCausalLM,
        gemma3_config(**vocabulary, query_pre_attn_scalar=16),
        "gemma3",
        {"token_embd.weight": Type.Q8_0, "ffn_down.weight": Type.Q4_1},
        gemma3_metadata,
    )

    def phi3_metadata(writer):
        short, long = long_factors(6)
        writer.add_rope_dimension_count(12)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_tensor("rope_factors_short.weight", np.array(short, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(long, np.float32))
        # sqrt(1 + ln(128 / 32) / ln(32)), as the converter writes it.
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(4) / np.log(32))))

    yield (
        "gguf-phi3",
        35,
        Phi3ForCausalLM,
        phi3_config(**vocabulary),
        "phi3",
        {"token_embd.weight": Type.Q8_0, "attn_qkv.weight": Type.Q4_1, "ffn_up.weight": Type.Q8_0},
        phi3_metadata,
    )
    yield (
        "gguf-smollm3",
        36,
        SmolLM3ForCausalLM,
        smollm3_config(**vocabulary),
        "smollm3",
        {"token_embd.weight": Type.Q8_0, "attn_k.weight": Type.Q4_1},
        lambda writer: None,
    )


def main():
    wanted = set(sys.argv[1:])
    for name, seed, model_class, config in directories():
        if not wanted or name in wanted:
            embedding = embedding_of(config)
            hugging_face(name, seed, model_class, config, torch.bfloat16, embedding=embedding)
    for name, *rest in files():
        if not wanted or name in wanted:
            gguf_family(name, *rest)
    if not wanted or "gguf-gpt-oss" in wanted:
        mixed = {"ffn_gate_exps.weight": Type.Q4_1, "ffn_down_exps.weight": Type.Q8_0}
        gguf_gpt_oss("gguf-gpt-oss", 37, mixed)


if __name__ == "__main__":
    main()
