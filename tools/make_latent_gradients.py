#!/usr/bin/env python3
"""Writes the gradients that published modules have on golden weights, as torch's autograd computes them in fp64.

Usage: make_latent_gradients.py MODULES GOLDEN OUT
  MODULES  a folder with the modules, from their own repositories:
             MTLA.py                github.com/D-Keqi/mtla, mtla/MTLA.py
             model.py               github.com/deepseek-ai/DeepSeek-V3, inference/model.py
  GOLDEN   the folder of latent_full_query, latent_low_rank_query_yarn and temporal_latent_stride2 .safetensors
  OUT      src/attention/latent/golden
needs torch, numpy and safetensors

Each file: the weights and the input (f32), a random cotangent (f32), the output, and per parameter and for the input the
gradient of sum(cotangent * output) (f64). MTLA's weights fit every stride: NAME.stride3.grad is the gradient at stride 3.

The modules convert to fp32 here and there; "fp32" is made to mean fp64 while they run. What our room keeps in fp32 is
rounded to it: the rotary frequencies and the scale of the scores.
"""
import importlib.util
import json
import math
import pathlib
import sys
import types

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

LAYOUT = {"heads": "num_attention_heads", "query_rank": "q_lora_rank", "rank": "kv_lora_rank", "nope": "qk_nope_head_dim",
          "rope": "qk_rope_head_dim", "value": "v_head_dim", "hidden": "hidden_size"}


def fp32_means_fp64():
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float32 = torch.float64
    torch.Tensor.float = torch.Tensor.double


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def read(path):
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}


def rounded(value):
    return np.asarray(value, np.float64).astype(np.float32).astype(np.float64)


def rotation(frequencies, tokens):
    """exp(i t f) with f in fp32 and everything else in fp64."""
    angles = np.outer(np.arange(tokens, dtype=np.float64), rounded(frequencies))
    return torch.polar(torch.ones(angles.shape, dtype=torch.float64), torch.from_numpy(angles))


def gradients(module, forward, tensors, cotangent):
    """output, {parameter: gradient}, with "input" among them."""
    state = {name: torch.from_numpy(value.astype(np.float64)) for name, value in tensors.items() if name not in ("input", "output")}
    module.load_state_dict(state)
    for parameter in module.parameters():
        parameter.grad = None
    x = torch.from_numpy(tensors["input"].astype(np.float64)).requires_grad_(True)
    y = forward(x.unsqueeze(0))[0]
    (y * torch.from_numpy(cotangent.astype(np.float64))).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    found["input"] = x.grad
    worst = np.abs(y.detach().numpy() - tensors["output"]).max() if "output" in tensors else 0.0
    return y.detach(), found, worst


def write(out, name, meta, tensors, cotangent, results):
    file = {key: torch.from_numpy(value) for key, value in tensors.items() if key != "output"}
    file["cotangent"] = torch.from_numpy(cotangent)
    for suffix, (output, found) in results.items():
        file["output" + suffix] = output.contiguous()
        for key, value in found.items():
            file[f"{key}{suffix}.grad"] = value.contiguous()
    save_file(file, str(out / f"{name}_gradients.safetensors"), metadata=meta)


def mla(module, meta, tensors, cotangent):
    size = {ours: int(meta[theirs]) for ours, theirs in LAYOUT.items()}
    scaling = json.loads(meta["rope_scaling"])
    tokens = len(tensors["input"])
    args = module.ModelArgs(max_batch_size=1, dim=size["hidden"], n_heads=size["heads"], q_lora_rank=size["query_rank"],
                            kv_lora_rank=size["rank"], qk_nope_head_dim=size["nope"], qk_rope_head_dim=size["rope"],
                            v_head_dim=size["value"], rope_theta=float(meta["rope_theta"]), original_seq_len=4096, max_seq_len=4096)
    if scaling is not None:
        args.max_seq_len = 4097   # that is what switches its YaRN on
        args.rope_factor, args.original_seq_len = scaling["factor"], scaling["original_max_position_embeddings"]
        args.beta_fast, args.beta_slow, args.mscale = scaling["beta_fast"], scaling["beta_slow"], scaling["mscale"]
    module.Linear.dtype = torch.float64
    layer = module.MLA(args)
    layer.softmax_scale = float(rounded(layer.softmax_scale))
    frequencies = torch.angle(module.precompute_freqs_cis(args)[1]).numpy()
    mask = torch.full((tokens, tokens), -math.inf).triu_(1)
    return gradients(layer, lambda x: layer(x, 0, rotation(frequencies, tokens), mask), tensors, cotangent)


def mtla(module, meta, tensors, cotangent, stride):
    size = {ours: int(meta[theirs]) for ours, theirs in LAYOUT.items()}
    tokens = len(tensors["input"])
    layer = module.MultiheadTemporalLatentAttention(size["hidden"], size["heads"], q_lora_rank=size["query_rank"],
                                                    kv_lora_rank=size["rank"], qk_nope_head_dim=size["nope"],
                                                    qk_rope_head_dim=size["rope"], v_head_dim=size["value"], down_rate=stride)
    layer.softmax_scale = float(rounded(layer.softmax_scale))
    frequencies = float(meta["rope_theta"]) ** (-np.arange(0, size["rope"], 2, dtype=np.float64) / size["rope"])
    layer._compute_freqs_cis_batch = lambda position, device: rotation(frequencies, tokens).unsqueeze(0)
    wanted = tensors if stride == int(meta["stride"]) else {k: v for k, v in tensors.items() if k != "output"}
    return gradients(layer, lambda x: layer(x, x, x), wanted, cotangent)


def main():
    modules, golden, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    # DeepSeek's file names kernels for formats that are not used here.
    kernel = types.ModuleType("kernel")
    kernel.act_quant = kernel.weight_dequant = kernel.fp8_gemm = None
    sys.modules["kernel"] = kernel
    fp32_means_fp64()
    deepseek, official = load(modules / "model.py", "deepseek_model"), load(modules / "MTLA.py", "official_mtla")
    random = np.random.default_rng(20)
    for name in ("latent_full_query", "latent_low_rank_query_yarn", "temporal_latent_stride2"):
        meta, tensors = read(golden / f"{name}.safetensors")
        cotangent = random.standard_normal(tensors["input"].shape).astype(np.float32)
        results = {}
        if meta["room"] == "latent":
            output, found, worst = mla(deepseek, meta, tensors, cotangent)
            results[""] = (output, found)
            meta["source"] = "DeepSeek-V3 reference module, inference/model.py, fp64"
        else:
            for stride in (1, 2, 3, 4):
                output, found, off = mtla(official, meta, tensors, cotangent, stride)
                results[f".stride{stride}"] = (output, found)
                worst = off if stride == int(meta["stride"]) else worst if stride > 1 else 0.0
            meta["source"] = "official MTLA module, mtla/MTLA.py, fp64"
            name = "temporal_latent"
        write(out, name, meta, tensors, cotangent, results)
        print(f"{name}: largest difference from the golden output {worst:.1e}")


if __name__ == "__main__":
    main()
