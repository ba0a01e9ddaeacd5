"""Writes a tiny llama model with random weights as a GGUF file: no download, no package, always the same bytes.

    python3 make_model.py OUT [--no-template] [--seed N]

2 layers, width 64, 4 query heads and 2 key heads of 32, feed-forward 128, a byte-level BPE of 264 tokens and a ChatML
template.
"""

import random
import struct
import sys

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, CONTEXT = 2, 64, 4, 2, 32, 128, 2048
ALIGNMENT = 32
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet():
    """GPT-2's printable stand-in for each byte."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    stand_ins, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            stand_ins[byte] = chr(byte)
        else:
            stand_ins[byte] = chr(256 + extra)
            extra += 1
    return stand_ins


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def entry(key, kind, value):
    pack = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}
    if kind == STRING:
        return string(key) + struct.pack("<I", kind) + string(value)
    if kind == ARRAY:
        inner, items = value
        body = b"".join(string(item) if inner == STRING else struct.pack(pack[inner], item) for item in items)
        return string(key) + struct.pack("<IIQ", kind, inner, len(items)) + body
    return string(key) + struct.pack("<I", kind) + struct.pack(pack[kind], value)


def metadata(tokens, types, merges, template):
    entries = [
        entry("general.architecture", STRING, "llama"),
        entry("general.name", STRING, "Tiny test model"),
        entry("general.alignment", UINT32, ALIGNMENT),
        entry("llama.block_count", UINT32, LAYERS),
        entry("llama.context_length", UINT32, CONTEXT),
        entry("llama.embedding_length", UINT32, WIDTH),
        entry("llama.feed_forward_length", UINT32, FEED_FORWARD),
        entry("llama.attention.head_count", UINT32, HEADS),
        entry("llama.attention.head_count_kv", UINT32, KV_HEADS),
        entry("llama.attention.key_length", UINT32, HEAD_DIM),
        entry("llama.attention.value_length", UINT32, HEAD_DIM),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("llama.rope.freq_base", FLOAT32, 10000.0),
        entry("llama.rope.dimension_count", UINT32, HEAD_DIM),
        entry("llama.vocab_size", UINT32, len(tokens)),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, "smollm"),
        entry("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        entry("tokenizer.ggml.token_type", ARRAY, (INT32, types)),
        entry("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
        entry("tokenizer.ggml.bos_token_id", UINT32, 1),
        entry("tokenizer.ggml.eos_token_id", UINT32, 2),
        entry("tokenizer.ggml.add_bos_token", BOOL, False),
    ]
    if template:
        entries.append(entry("tokenizer.chat_template", STRING, template))
    return entries


def tensors(vocabulary):
    """(name, shape slowest first); a matrix [out, in] is stored row by row."""
    yield "token_embd.weight", (vocabulary, WIDTH)
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        yield name + "attn_norm.weight", (WIDTH,)
        yield name + "attn_q.weight", (HEADS * HEAD_DIM, WIDTH)
        yield name + "attn_k.weight", (KV_HEADS * HEAD_DIM, WIDTH)
        yield name + "attn_v.weight", (KV_HEADS * HEAD_DIM, WIDTH)
        yield name + "attn_output.weight", (WIDTH, HEADS * HEAD_DIM)
        yield name + "ffn_norm.weight", (WIDTH,)
        yield name + "ffn_gate.weight", (FEED_FORWARD, WIDTH)
        yield name + "ffn_up.weight", (FEED_FORWARD, WIDTH)
        yield name + "ffn_down.weight", (WIDTH, FEED_FORWARD)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (vocabulary, WIDTH)


def make_model(seed=1, template=TEMPLATE):
    stand_ins = byte_alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w"]
    tokens = specials + [stand_ins[byte] for byte in range(256)] + ["he", "ll", "hell", "hello", "Ġw"]
    types = [3] * len(specials) + [1] * (len(tokens) - len(specials))
    draw = random.Random(seed)
    infos, data = [], b""
    for name, shape in tensors(len(tokens)):
        count = 1
        for size in shape:
            count *= size
        is_norm = len(shape) == 1
        scale = 0.1 if is_norm else 0.12
        values = [draw.gauss(1.0 if is_norm else 0.0, scale) for _ in range(count)]
        data += b"\0" * (-len(data) % ALIGNMENT)
        dims = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        infos.append(string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", 0, len(data)))
        data += struct.pack(f"<{count}f", *values)
    entries = metadata(tokens, types, merges, template)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries) + b"".join(infos)
    return header + b"\0" * (-len(header) % ALIGNMENT) + data


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen_seed = int(words[words.index("--seed") + 1]) if "--seed" in words else 1
    with open(words[0], "wb") as out:
        out.write(make_model(chosen_seed, None if "--no-template" in words else TEMPLATE))
