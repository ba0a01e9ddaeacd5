#!/usr/bin/env python3
"""Writes the seed files that come from other people's writers (PyPI: gguf, safetensors, numpy).

They seed the fuzzers and are the independent oracle of the readers' tests, which know the values below.
Usage: make_seed_files.py CORPUS_FOLDER
"""
import pathlib
import sys

import gguf
import numpy
from safetensors.numpy import save_file

corpus = pathlib.Path(sys.argv[1])


def numbers(count, dtype):
    return (numpy.arange(count) * 0.25 - 3).astype(dtype)


def write_gguf(path, alignment=None):
    writer = gguf.GGUFWriter(path, "test")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(2)
    writer.add_float32("t.f32", 0.5)
    writer.add_float64("t.f64", 0.25)
    writer.add_bool("t.bool", True)
    writer.add_int8("t.i8", -100)
    writer.add_uint64("t.u64", 2**64 - 1)
    writer.add_string("t.text", "gr\u00fc\u00dfe")
    writer.add_array("t.strings", ["one", "", "three"])
    writer.add_array("t.ints", [-1, 0, 70000])
    writer.add_array("t.floats", [1.5, -2.0])
    writer.add_tensor("f32", numbers(6, numpy.float32).reshape(2, 3))
    writer.add_tensor("f16", numbers(24, numpy.float16).reshape(2, 3, 4))
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.BF16):
        data = gguf.quants.quantize(numbers(128, numpy.float32).reshape(2, 64), kind)
        writer.add_tensor(kind.name.lower(), data, raw_dtype=kind)
    writer.add_tensor("i32", numpy.arange(5, dtype=numpy.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write_gguf(corpus / "gguf_fuzz" / "other_writer.gguf")
write_gguf(corpus / "gguf_fuzz" / "other_writer_aligned_64.gguf", alignment=64)
save_file(
    {
        "f32": numbers(6, numpy.float32).reshape(2, 3),
        "f16": numbers(24, numpy.float16).reshape(2, 3, 4),
        "f64": numbers(2, numpy.float64),
        "i64": numpy.arange(5),
        "bool": numpy.array([True, False, True]),
        "empty": numpy.zeros((0, 4), numpy.float32),
        "scalar": numpy.array(7.5, numpy.float32),
    },
    corpus / "safetensors_fuzz" / "other_writer.safetensors",
    metadata={"format": "np", "note": "gr\u00fc\u00dfe \"quoted\"\n"},
)
