#!/usr/bin/env python3
"""Writes golden/*.safetensors: the equations of math.md in numpy, float64, over whole sequences.

Usage: make_golden.py      needs numpy and safetensors; the files are the same bytes on every run.

No cache, no pages and, for rule linear, no memory either: what a token reads is summed over all earlier tokens. Tensors carry
the room's roles; "attended" is what comes out. Metadata: the hyperparameters.
"""
import os

import numpy as np
from safetensors.numpy import save_file

HIDDEN, HEADS, RANK, NOPE, ROPE, VALUE, TOKENS = 20, 3, 10, 6, 4, 5, 34
LEAST, EPSILON, THETA = 1e-6, 1e-6, 1e4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * weight


def rotate(x, positions):
    """Half-split pairs of the last axis of x [T, ..., ROPE]."""
    half = ROPE // 2
    angle = positions[:, None] * THETA ** (-2 * np.arange(half) / ROPE)
    cos, sin = np.cos(angle), np.sin(angle)
    if x.ndim == 3:
        cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def features(x, s):
    kind = s.get("feature", "elu1")
    if kind == "elu1":
        f = np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    elif kind == "dpfp":
        r = np.maximum(np.concatenate([x, -x], axis=-1), 0)
        f = np.concatenate([r * np.roll(r, -j, axis=-1) for j in range(1, s["dpfp_nu"] + 1)], axis=-1)
    else:
        f = x * sigmoid(x)
    if kind == "silu_l2" or s["rule"] == "delta_true":
        f = f / np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), LEAST)
    return f


def attend(w, s, x):
    """Everything before the memory: queries, latents, the local attention's heads [T, HEADS, VALUE]."""
    tokens, n = len(x), s["segment_tokens"]
    positions = np.arange(tokens, dtype=np.float64)
    q = rms(x @ w["query_down"].T, w["query_down_norm"]) @ w["query_up"].T if "query_rank" in s else x @ w["query"].T
    q = q.reshape(tokens, HEADS, NOPE + ROPE)
    nope, turned = q[..., :NOPE], rotate(q[..., NOPE:], positions)
    row = x @ w["latent_down"].T
    c, k = rms(row[:, :RANK], w["latent_norm"]), rotate(row[:, RANK:], positions)
    up = w["latent_up"].reshape(HEADS, NOPE + VALUE, RANK)
    keys, values = np.einsum("hdr,tr->thd", up[:, :NOPE], c), np.einsum("hdr,tr->thd", up[:, NOPE:], c)
    scores = (np.einsum("thd,uhd->htu", nope, keys) + np.einsum("thd,ud->htu", turned, k)) / np.sqrt(NOPE + ROPE)
    t, u = np.arange(tokens)[:, None], np.arange(tokens)[None, :]
    back = 1 if s.get("window") == "previous" else 0
    scores = np.where((u <= t) & (t // n - u // n <= back), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return nope, c, up, keys, values, np.einsum("htu,uhd->thd", p, values)


def scan(s, query, key, value, write):
    """One memory: query [T, G, F], key [T, F], value [T, V], write [T] -> read [T, G, V], M, z."""
    tokens, n, rule = len(key), s["segment_tokens"], s["rule"]
    m, z = np.zeros((key.shape[1], value.shape[1])), np.zeros(key.shape[1])
    added = np.zeros_like(value)   # what each token wrote
    read = np.zeros((tokens, query.shape[1], value.shape[1]))
    norm = s.get("norm", "none" if rule == "delta_true" else "z")
    for begin in range(0, tokens, n):
        end = min(tokens, begin + n)
        for t in range(begin, end):
            if rule == "linear":   # no memory: all earlier tokens, one by one
                weight = query[t] @ key[:begin].T * write[:begin]
                out, total = weight @ value[:begin], query[t] @ z
            else:
                out, total = query[t] @ m, query[t] @ z
            read[t] = out / np.maximum(total, LEAST)[:, None] if norm == "z" else out
        before = m.copy()
        for t in range(begin, end):
            if rule == "linear":
                added[t] = write[t] * value[t]
            elif rule == "delta":
                added[t] = write[t] * (value[t] - key[t] @ before / max(key[t] @ z, LEAST))
            else:
                added[t] = write[t] * (value[t] - key[t] @ m)
            m += np.outer(key[t], added[t])
        if end - begin < n:        # not closed: it stays in the open sums
            return read, before, z
        z = z + (write[begin:end, None] * key[begin:end]).sum(axis=0)
    return read, m, z


def run(w, s, x):
    nope, c, up, keys, values, local = attend(w, s, x)
    tokens = len(x)
    memories = 1 if s["memory"] == "latent" else HEADS
    if s["memory"] == "latent":
        query = np.einsum("hdr,thd->thr", up[:, :NOPE], nope)
        key = c
        if "memory_key_dim" in s:
            query, key = query @ w["memory_key_proj"].T, key @ w["memory_key_proj"].T
        parts = [(query, key, c)]
    else:
        parts = [(nope[:, h:h + 1], keys[:, h], values[:, h]) for h in range(HEADS)]
    write = np.ones((tokens, memories))
    if s.get("write_gate", "none") != "none":
        write = sigmoid(x @ w["write_gate"].T + w["write_gate_bias"])
        if s["write_gate"] == "hard":
            write = np.clip(1.2 * write - 0.1, 0, 1)
    if s["rule"] == "delta_true":
        write = write * sigmoid(x @ w["write_strength"].T)
    results = [scan(s, features(q, s), features(k, s), v, write[:, i]) for i, (q, k, v) in enumerate(parts)]
    read = np.concatenate([r[0] for r in results], axis=1)   # [T, HEADS, V]
    if s.get("norm") == "rms":
        read = rms(read, w["read_norm"])
    if s["memory"] == "latent":
        read = np.einsum("hdr,thr->thd", up[:, NOPE:], read)
    gate = sigmoid(x @ w["memory_gate_proj"].T if s.get("gate") == "token" else np.tile(w["memory_gate"], (tokens, 1)))
    if s.get("first_segment") == "local":
        gate[:s["segment_tokens"]] = 0
    heads = gate[..., None] * read + (1 - gate[..., None]) * local
    result = {"attended": heads.reshape(tokens, -1) @ w["output"].T, "final_memory": np.stack([r[1] for r in results])}
    if s["rule"] == "delta" or s.get("norm", "z" if s["rule"] != "delta_true" else "none") == "z":
        result["final_norm"] = np.stack([r[2] for r in results])
    return result


def weights(s, random):
    def matrix(rows, cols):
        return random.normal(size=(rows, cols)) * 2 / np.sqrt(cols)

    def norm(n):
        return 1 + 0.2 * random.normal(size=n)

    shared = s["memory"] == "latent"
    memories = 1 if shared else HEADS
    w = {"latent_down": matrix(RANK + ROPE, HIDDEN), "latent_norm": norm(RANK),
         "latent_up": matrix(HEADS * (NOPE + VALUE), RANK), "output": matrix(HIDDEN, HEADS * VALUE)}
    if "query_rank" in s:
        w["query_down"], w["query_down_norm"] = matrix(s["query_rank"], HIDDEN), norm(s["query_rank"])
        w["query_up"] = matrix(HEADS * (NOPE + ROPE), s["query_rank"])
    else:
        w["query"] = matrix(HEADS * (NOPE + ROPE), HIDDEN)
    if s.get("gate") == "token":
        w["memory_gate_proj"] = matrix(HEADS, HIDDEN)
    else:
        w["memory_gate"] = random.normal(size=HEADS)
    if s.get("write_gate", "none") != "none":
        w["write_gate"], w["write_gate_bias"] = matrix(memories, HIDDEN), 0.3 * random.normal(size=memories)
    if s["rule"] == "delta_true":
        w["write_strength"] = matrix(memories, HIDDEN)
    if "memory_key_dim" in s:
        w["memory_key_proj"] = matrix(s["memory_key_dim"], RANK)
    if s.get("norm") == "rms":
        w["read_norm"] = norm(RANK if shared else VALUE)
    return {name: value.astype(np.float32) for name, value in w.items()}


CASES = {
    "per_head_linear": {"memory": "per_head", "rule": "linear", "segment_tokens": 7},
    "per_head_delta_window": {"memory": "per_head", "rule": "delta", "segment_tokens": 5, "window": "previous", "gate": "token"},
    "per_head_delta_true": {"memory": "per_head", "rule": "delta_true", "segment_tokens": 6, "feature": "silu_l2",
                            "write_gate": "soft"},
    "latent_linear": {"memory": "latent", "rule": "linear", "segment_tokens": 17},
    "latent_delta_dpfp": {"memory": "latent", "rule": "delta", "segment_tokens": 8, "feature": "dpfp", "dpfp_nu": 2,
                          "accumulation": "compensated", "query_rank": 9},
    "latent_delta_true_projected": {"memory": "latent", "rule": "delta_true", "segment_tokens": 11, "memory_key_dim": 6,
                                    "norm": "rms", "write_gate": "hard", "first_segment": "local"},
}


def main():
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    os.makedirs(folder, exist_ok=True)
    for i, (name, case) in enumerate(CASES.items()):
        s = {"heads": HEADS, "latent_rank": RANK, "nope_dim": NOPE, "rope_dim": ROPE, "value_dim": VALUE, "latent_norm": "rms",
             "norm_epsilon": EPSILON, "rope_theta": THETA, **case}
        random = np.random.default_rng(100 + i)
        w = weights(s, random)
        x = random.normal(size=(TOKENS, HIDDEN)).astype(np.float32)
        exact = run({k: v.astype(np.float64) for k, v in w.items()}, s, x.astype(np.float64))
        tensors = {**w, "input": x, **{k: v.astype(np.float32) for k, v in exact.items()}}
        save_file(tensors, os.path.join(folder, name + ".safetensors"),
                  metadata={k: str(v) for k, v in s.items()})
        print(name, "attended", float(np.abs(exact["attended"]).max()))


if __name__ == "__main__":
    main()
