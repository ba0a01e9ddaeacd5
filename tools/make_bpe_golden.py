#!/usr/bin/env python3
"""Writes src/train/golden/bpe.json: what Hugging Face `tokenizers` learns from a text, and the ids it gives.

Usage: make_bpe_golden.py OUT        needs the PyPI package tokenizers
"""
import json
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
TEXT = """A quipu is a record kept in knotted cords: a long history held in little space. The knots say how many, the
cords say of what, and the colour says whose it was. The keeper of the cords reads them with the fingers; the reading is
slow, but nothing that was tied is lost.

It's said there were 12,000 cords in the house at Puruchuco, and that 365 of them weren't read again until 2005. The year
has 365 days, 2005 has 365 days too; 2004 had 366. They've been counted: 12 + 12 = 24, 120 + 120 = 240, 1200+1200=2400.

    for cord in cords:
        for knot in cord.knots:
            total += knot.value * 10 ** knot.place

Äpfel und Öl über Straßen; naïve café, déjà vu. Кипу: узел за узлом, узел за узлом. 結繩記事, 結繩記事。 🧶🧶 knot, knot!
The cords, the cords, the cords: THE CORDS.\tTabs\tand  double  spaces   and trailing ones.   \r
aaaaaaaaaaaa aaaa aaaaaaa aaa abababab abab ababab
"""
CASES = ["", "The keeper of the cords", "It's 365 knots, they've 2005.", "  two  spaces\n\nand lines\r\n", "узел結🧶naïve",
         "aaaaaaaaabababab", "THE quipu's cords \u00a0x", "\x00\x01 control", "for cord in cords:\n    total += 12000"]


def train(pattern, size):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    if pattern == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        byte_level = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    cases = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in CASES]
    return {"vocab_size": size, "vocab": model["vocab"], "merges": model["merges"], "cases": cases}


def main():
    golden = {"text": TEXT, "gpt2": train("gpt2", 420), "llama3": train("llama3", 380)}
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump(golden, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


if __name__ == "__main__":
    main()
