#!/usr/bin/env python3
"""One training step of train_bench's model in PyTorch: the peer of `train_bench`. Prints tokens/s.

Usage: train_peer.py [fp32|bf16] [threads] [steps] [sequences] [sequence tokens] [compile]      (needs torch)

bf16: autocast with fp32 master weights, as train_bench's bf16. Attention is scaled_dot_product_attention, AdamW the fused one.
"""
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

HIDDEN, HEADS, INNER, LAYERS, VOCABULARY = 512, 8, 1408, 8, 8192


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN, 1e-6), nn.RMSNorm(HIDDEN, 1e-6)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)

        def rotate(y):
            a, b = y.chunk(2, -1)
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

        y = F.scaled_dot_product_attention(rotate(q).to(v.dtype), rotate(k).to(v.dtype), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, HIDDEN))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, 1e-6)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        angle = torch.outer(torch.arange(tokens.shape[1]), 1e4 ** (-torch.arange(0, 64, 2) / 64))
        cos, sin = angle.cos(), angle.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().view(-1, VOCABULARY), targets.reshape(-1))


def main():
    arguments = sys.argv[1:]
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    precision = arguments[0] if arguments else "bf16"
    defaults = ((1, 2), (2, 3), (3, 8), (4, 1024))
    threads, steps, sequences, tokens = (int(arguments[i]) if len(arguments) > i else d for i, d in defaults)
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Model()
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if len(arguments) > 5 else model
    ids = torch.randint(0, VOCABULARY, (sequences, tokens + 1))
    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        took = time.perf_counter() - start
        if step > 0:
            seconds.append(took)
        print(f"  step {step + 1}: loss {loss.item():.4f}, {took:.3f} s, {sequences * tokens / took:.0f} tokens/s", flush=True)
    median = statistics.median(seconds)
    print(f"torch {torch.__version__} {precision} {threads} thr: {sequences * tokens / median:.0f} tokens/s ({median:.3f} s, n={len(seconds)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
