#!/usr/bin/env python3
"""Gradients of a tiny Llama by PyTorch's autograd in float64, for src/model/training_test.cc.

Usage: make_training_goldens.py OUT.safetensors        (needs torch, transformers, safetensors)

The file holds the weights under their Hugging Face names, the gradients of the mean loss under "gradient.<name>", two
sequences as "tokens" and "targets" [2, 13] (-1: ignored), and "loss" [1]. The model is transformers' LlamaForCausalLM with
grouped heads and an untied output; the loss is torch's cross entropy over the targets that count. Everything is stored as
float32: weights are rounded to float32 before they are used, results after. (transformers computes norms and rotations in
float32 even in a float64 model, so the last digits are float32's.)
"""
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def main():
    if len(sys.argv) != 2:
        print(__doc__.strip().splitlines()[2], file=sys.stderr)
        return 2
    torch.manual_seed(5)
    config = LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=6, vocab_size=31, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False,
                         max_position_embeddings=64)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = 1.0 if "norm" in name else 0.0
            parameter.copy_(base + 0.3 * torch.randn_like(parameter))
    weights = {name: parameter.detach().clone().float().contiguous() for name, parameter in model.named_parameters()}
    model = model.double()
    tokens = torch.randint(0, 31, (2, 13))
    targets = torch.randint(0, 31, (2, 13))
    targets[0, 4] = targets[1, 0] = targets[1, 12] = -1
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 31), targets.reshape(-1), ignore_index=-1)
    loss.backward()
    tensors = dict(weights)
    for name, parameter in model.named_parameters():
        tensors["gradient." + name] = parameter.grad.float().contiguous()
    tensors.update(tokens=tokens.float(), targets=targets.float(), loss=loss.detach().float().reshape(1))
    save_file(tensors, sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
