#!/usr/bin/env python3
"""Writes src/tensor/testdata/quant_goldens.{txt,bin}: what the PyPI package `gguf` (MIT) decodes and encodes.

The .txt file names arrays in the .bin file, one a line: `what format elements first_byte bytes`. For each block format
`blocks` holds bytes and `decoded` their floats; where the package can encode, `encoded` holds its bytes for the floats
of `values`. Run: pip install gguf==0.19.0; tools/make_quant_goldens.py
"""
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

OUT = pathlib.Path(__file__).resolve().parent.parent / "src/tensor/testdata"
# Byte offsets of the binary16 fields of each format.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
# +-0, smallest and largest subnormal, smallest normal, +-largest, infinities, NaN
EXTREME = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01]
ENCODED = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]


def random_blocks(rng, fmt):
    elements, size = GGML_QUANT_SIZES[fmt]
    halves = HALVES[fmt]
    plain = 19 if elements == 32 else 5
    blocks = rng.integers(0, 256, (plain + len(EXTREME), size), dtype=np.uint8)
    for row, block in enumerate(blocks):
        for field in halves:
            if row < plain - 2:      # scales as in real weights; the last two plain blocks stay random throughout
                half = np.float16(rng.standard_normal() * 0.01)
            elif row < plain:
                continue
            elif field == halves[(row - plain) % len(halves)]:
                half = np.uint16(EXTREME[row - plain]).view(np.float16)
            else:
                half = np.float16(rng.standard_normal() * 0.01)
            block[field:field + 2] = np.frombuffer(half.tobytes(), np.uint8)
    return blocks


def values_to_encode(rng):
    blocks = rng.standard_normal((41, 32)).astype(np.float32)
    blocks[1] = 0
    blocks[2] = 0.75
    blocks[3] = -0.75
    blocks[4] = np.abs(blocks[4])
    blocks[5] = -np.abs(blocks[5])
    blocks[6, 7] = 300
    blocks[7] = np.arange(32) - 16               # ties of extreme values and of rounding
    blocks[8] = np.arange(32) * 0.5 - 8
    blocks[9] *= 1e-4                            # scales that are subnormal in binary16
    blocks[10] *= 2e4
    blocks[11] = np.round(blocks[11] * 4) / 4
    return blocks


def main():
    rng = np.random.default_rng(20)
    index, chunks, at = [], [], 0

    def add(what, name, elements, array):
        nonlocal at
        data = np.ascontiguousarray(array).tobytes()
        index.append(f"{what} {name} {elements} {at} {len(data)}")
        chunks.append(data)
        at += len(data)

    with np.errstate(all="ignore"):
        for fmt in HALVES:
            blocks = random_blocks(rng, fmt)
            decoded = dequantize(blocks, fmt).astype(np.float32)
            add("blocks", fmt.name.lower(), decoded.size, blocks)
            add("decoded", fmt.name.lower(), decoded.size, decoded)
        values = values_to_encode(rng)
        add("values", "f32", values.size, values)
        for fmt in ENCODED:
            add("encoded", fmt.name.lower(), values.size, quantize(values, fmt))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "quant_goldens.txt").write_text("\n".join(index) + "\n")
    (OUT / "quant_goldens.bin").write_bytes(b"".join(chunks))


if __name__ == "__main__":
    main()
