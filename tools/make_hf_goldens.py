#!/usr/bin/env python3
"""Makes the tiny random Hugging Face checkpoints of this folder and their golden logits.

Needs torch, transformers (5.x) and safetensors. The weights are rounded to the storage type and saved, then
loaded back from disk and run in float32 with eager attention on one thread, so the goldens belong to exactly
the bytes that were saved.

Each folder holds
  config.json         as transformers 5 writes it (rope settings inside "rope_parameters")
  config_legacy.json  the same settings as older checkpoints spell them (rope_theta, rope_scaling, torch_dtype)
  model.safetensors
  golden.safetensors  ids_17, ids_65 (int32) and logits_17, logits_65 (float32, [tokens, vocab])

The expert models are drawn again until no routing choice is near a tie, so that float32 rounding in another
order cannot change which experts run.

usage: make_hf_goldens.py [OUT_DIR] [NAME ...]
"""
import json
import os
import sys
import zlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers import (DeepseekV2Config, DeepseekV3Config, Gemma3TextConfig, LlamaConfig, MistralConfig,
                          Qwen2Config, Qwen3Config)
from transformers.utils.logging import disable_progress_bar

COMMON = dict(hidden_size=64, vocab_size=256, max_position_embeddings=512, rms_norm_eps=1e-6,
              bos_token_id=1, eos_token_id=2, pad_token_id=None, attention_dropout=0.0)
GQA = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=24)


def rope(theta, **scaling):
    return dict(rope_type=scaling.pop("rope_type", "default"), rope_theta=theta, **scaling)


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.707,
            original_max_position_embeddings=4096)


def general_models():
    """name -> (config, storage type)"""
    m = {}
    llama = dict(dict(COMMON, hidden_size=72), num_attention_heads=9, num_key_value_heads=3, head_dim=8, intermediate_size=96,
                 num_hidden_layers=3)
    m["llama"] = LlamaConfig(**llama, tie_word_embeddings=True, rope_parameters=rope(10000.0)), torch.float32
    m["llama_bias"] = (LlamaConfig(**dict(COMMON, **GQA), intermediate_size=96, num_hidden_layers=2,
                                   attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                                   rope_parameters=rope(10000.0)), torch.bfloat16)
    m["llama3_rope_scaling"] = (LlamaConfig(**dict(COMMON, **GQA), intermediate_size=128, num_hidden_layers=3,
                                            tie_word_embeddings=True, rope_parameters=rope(10000.0, **LLAMA3)),
                                torch.bfloat16)
    m["mistral"] = (MistralConfig(**dict(COMMON, **GQA), intermediate_size=128, num_hidden_layers=3,
                                  sliding_window=16, tie_word_embeddings=False, rope_parameters=rope(10000.0)),
                    torch.float16)
    m["qwen2"] = (Qwen2Config(**COMMON, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
                              num_hidden_layers=3, use_sliding_window=False, tie_word_embeddings=False,
                              rope_parameters=rope(1000000.0)), torch.bfloat16)
    m["qwen3"] = (Qwen3Config(**dict(COMMON, **GQA), intermediate_size=128, num_hidden_layers=3,
                              use_sliding_window=False, attention_bias=False, tie_word_embeddings=True,
                              rope_parameters=rope(1000000.0)), torch.bfloat16)
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    gemma = dict(COMMON, **GQA, intermediate_size=96, num_hidden_layers=4, layer_types=types, sliding_window=16,
                 query_pre_attn_scalar=20, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
                 attn_logit_softcapping=None, final_logit_softcapping=None)
    local = rope(10000.0)
    m["gemma3"] = (Gemma3TextConfig(**gemma, rope_parameters={"full_attention": rope(1000000.0),
                                                             "sliding_attention": local}), torch.bfloat16)
    m["gemma3_linear_rope"] = (Gemma3TextConfig(**gemma, rope_parameters={
        "full_attention": rope(1000000.0, rope_type="linear", factor=8.0), "sliding_attention": local}),
        torch.bfloat16)
    return m


def deepseek_models():
    base = dict(COMMON, vocab_size=128, num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32,
                qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12, intermediate_size=96,
                moe_intermediate_size=32, n_routed_experts=8, num_experts_per_tok=2, n_group=2,
                attention_bias=False, tie_word_embeddings=False)
    dense = dict(num_hidden_layers=2, first_k_dense_replace=2)
    moe = dict(num_hidden_layers=3, first_k_dense_replace=1)

    def settings(is_moe, qlora, yarn):
        return dict(base, **(moe if is_moe else dense), q_lora_rank=24 if qlora else None,
                    rope_parameters=rope(10000.0, **(YARN if yarn else {})),
                    max_position_embeddings=16384 if yarn else 4096)

    m = {}
    for is_moe, qlora, yarn in [(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 0, 1)]:
        name = "deepseek_v2" + ("_moe" if is_moe else "_dense") + ("_qlora" if qlora else "") + ("_yarn" if yarn else "")
        # One of the two expert models picks within groups, the other over all experts.
        m[name] = (DeepseekV2Config(**settings(is_moe, qlora, yarn), n_shared_experts=2, routed_scaling_factor=1.5,
                                    topk_method="group_limited_greedy" if qlora else "greedy", topk_group=1,
                                    norm_topk_prob=False, mlp_bias=False), torch.bfloat16)
    for is_moe in (0, 1):
        for yarn in (0, 1):
            for interleave in (1, 0):
                qlora = is_moe ^ yarn ^ interleave
                name = ("deepseek_v3" + ("_moe" if is_moe else "_dense") + ("_qlora" if qlora else "")
                        + ("_yarn" if yarn else "") + ("" if interleave else "_halves"))
                m[name] = (DeepseekV3Config(**settings(is_moe, qlora, yarn), n_shared_experts=1,
                                            routed_scaling_factor=2.5, topk_group=1, norm_topk_prob=True,
                                            rope_interleave=bool(interleave), num_nextn_predict_layers=0),
                           torch.bfloat16)
    return m


def fill(model, config, seed):
    g = torch.Generator().manual_seed(seed)

    def normal(t, scale):
        return torch.randn(t.shape, generator=g, dtype=torch.float32) * scale

    gemma = config.model_type.startswith("gemma3")
    with torch.no_grad():
        tensors = dict(model.named_parameters())
        tensors.update({k: v for k, v in model.named_buffers() if k.endswith("e_score_correction_bias")})
        for name, t in sorted(tensors.items()):
            if "norm" in name:
                t.copy_(normal(t, 0.2) + (0.0 if gemma else 1.0))  # gemma's norms store weight - 1
            elif name.endswith("e_score_correction_bias"):
                t.copy_(normal(t, 0.1))
            elif name.endswith(".bias"):
                t.copy_(normal(t, 0.3))
            elif "embed_tokens" in name:
                t.copy_(normal(t, 0.08 if gemma else 0.3 if config.tie_word_embeddings else 1.0))
            elif name.endswith("gate.weight"):
                t.copy_(normal(t, 0.4))
            else:
                t.copy_(normal(t, 1.2 * t.shape[-1] ** -0.5))


def legacy_config(path, storage):
    """The config in the spelling that most published checkpoints have."""
    c = json.load(open(path))
    c["torch_dtype"] = str(storage).split(".")[1]
    c.pop("dtype", None)
    c["transformers_version"] = "4.50.0"

    def scaling(r):
        s = {k: v for k, v in r.items() if k != "rope_theta"}
        if s["rope_type"] == "default":
            return None
        if c["model_type"].startswith("deepseek"):
            s["type"] = s.pop("rope_type")  # the spelling of the published DeepSeek checkpoints
        return s

    r = c.pop("rope_parameters")
    if "full_attention" in r:
        c["rope_local_base_freq"] = r["sliding_attention"]["rope_theta"]
        r = r["full_attention"]
    c["rope_theta"] = r["rope_theta"]
    c["rope_scaling"] = scaling(r)
    return c


def routing_margin(model, ids):
    """Smallest gap between the last expert (or group) taken and the first one left, over all tokens and layers."""
    gaps, hooks = [], []

    def gap(scores, taken):
        top = scores.topk(taken + 1, -1)[0]
        gaps.append((top[:, -2] - top[:, -1]).min().item())

    def hook(mod, args, out):
        logits = args[0].reshape(-1, mod.weight.shape[1]).float() @ mod.weight.float().T
        v3 = hasattr(mod, "e_score_correction_bias")
        scores = (logits.sigmoid() + mod.e_score_correction_bias) if v3 else logits.softmax(-1)
        if v3 or mod.topk_method == "group_limited_greedy":
            groups = scores.view(len(scores), mod.num_group, -1)
            group_scores = groups.topk(2, -1)[0].sum(-1) if v3 else groups.max(-1).values
            gap(group_scores, mod.topk_group)
            scores = groups[torch.arange(len(scores)), group_scores.argmax(-1)]  # topk_group is 1 in every model here
        gap(scores, mod.top_k)

    for n, mod in model.named_modules():
        if n.endswith("mlp.gate"):
            hooks.append(mod.register_forward_hook(hook))
    for t in ids if hooks else []:
        model(input_ids=t.long()[None], use_cache=False)
    for h in hooks:
        h.remove()
    return min(gaps, default=None)


def make(out, name, config, storage):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    config.dtype = storage
    seed = zlib.crc32(name.encode())
    g = torch.Generator().manual_seed(seed ^ 0x5EED)
    ids = [torch.randint(3, config.vocab_size, (n,), generator=g).to(torch.int32) for n in (17, 65)]
    for attempt in range(1000):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        fill(model, config, seed + attempt)
        float32_always = {n: b.clone() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")}
        model.to(storage).float()
        for n, b in float32_always.items():  # float32 on disk in the published checkpoints too
            model.get_buffer(n).data = b
        margin = routing_margin(model, ids)
        if margin is None or margin > 3e-4:
            break
    model.to(storage)
    for n, b in float32_always.items():
        model.get_buffer(n).data = b
    model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    golden = {}
    for t in ids:
        logits = model(input_ids=t.long()[None], use_cache=False).logits[0].float().contiguous()
        golden[f"ids_{len(t)}"] = t
        golden[f"logits_{len(t)}"] = logits
    save_file(golden, os.path.join(folder, "golden.safetensors"))
    with open(os.path.join(folder, "config_legacy.json"), "w") as f:
        json.dump(legacy_config(os.path.join(folder, "config.json"), storage), f, indent=2)
        f.write("\n")
    gen = os.path.join(folder, "generation_config.json")
    if os.path.exists(gen):
        os.remove(gen)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    l = golden["logits_65"]
    top = l.topk(2, -1)[0]
    print(f"{name:32s} {size // 1024:4d} KiB  logits rms {l.pow(2).mean().sqrt():.3f}  "
          f"min top gap {(top[:, 0] - top[:, 1]).min():.2e}  routing margin {margin}  seed +{attempt}")


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models = {**general_models(), **deepseek_models()}
    with torch.no_grad():
        for name in sys.argv[2:] or models:
            make(out, name, *models[name])


if __name__ == "__main__":
    main()
