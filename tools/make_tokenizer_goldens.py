#!/usr/bin/env python3
"""Writes src/text/testdata: small tokenizers and the ids that reference libraries give for a battery of texts.

  python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3 gguf==0.19.0
  /tmp/venv/bin/python tools/make_tokenizer_goldens.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --shared ../shared

Oracles: Hugging Face `tokenizers` for everything with a tokenizer.json, SentencePiece for vocabularies with scores.
Without --gguf or without the shared folder the goldens of those vocabularies are left as they are.
The texts keep to characters of Unicode 14, so that libraries with newer tables agree with ours.
"""
import argparse, io, json, pathlib, random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parent.parent / "src/text/testdata"

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.", "It's what we've got, they're sure you'll see; I'd say I'm DON'T WON'T 'tis.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.", "Voix ambiguë d'un cœur qui au zéphyr préfère les jattes de kiwis.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío.", "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig.", "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Щастям б'єш жук їх глицю в фон й ґедзь пріч.", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.", "یک متن فارسی با نیم‌فاصله می‌نویسیم.", "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण।",
    "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।", "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்.", "తెలుగు భాష చాలా తీయనిది.",
    "ಕನ್ನಡ ಭಾಷೆ", "മലയാളം ഒരു ദ്രാവിഡ ഭാഷയാണ്.", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "ພາສາລາວ", "ភាសាខ្មែរ", "မြန်မာဘာသာ", "བོད་སྐད་",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。", "我能吞下玻璃而不傷身體。", "いろはにほへと ちりぬるを わかよたれそ つねならむ", "カタカナとひらがなと漢字が混ざった文章です。",
    "다람쥐 헌 쳇바퀴에 타고파.", "Tiếng Việt có dấu thanh: ắ ằ ẳ ẵ ặ.", "ქართული ენა", "Հայոց լեզու", "አማርኛ ቋንቋ", "ᏣᎳᎩ", "ᓀᐦᐃᔭᐍᐏᐣ", "Íslenska þorn og eð",
    "İstanbul'da ığdır şöyle böyle", "ǅ ǈ ǋ ĲĳŊŋ ſtraße ẞ",
]
EMOJI = [
    "😀", "👨‍👩‍👧‍👦", "👩🏽‍🚀", "🏳️‍🌈", "🇩🇪🇫🇷🇯🇵", "☺️", "❤️‍🔥", "1️⃣2️⃣", "👍🏿👍🏻", "🧑‍💻 codes 🎉🎉🎉", "a😀b", " 😀 ", "🀄", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
]
COMBINING = [
    "e\u0301", "a\u0308\u0301", "\u0301", " \u0301x", "n\u0303o", "Z\u0351\u036b\u0343a\u0328l\u034eg\u0321o\u033b", "\u1112\u1161\u11ab", "가\u11a8",
    "q\u0307\u0323", "\u0958", "\u212b \u2126 \u212a", "ﬁ ﬂ ﬃ", "①②③ ⑩", "½ ¼ ²³ ⅓ Ⅳ ⅳ", "ｆｕｌｌ　ｗｉｄｔｈ １２３", "ﾊﾝｶｸ ｶﾞ", "㍿ ㎏ ㏒", "ﷺ", "\u2460\u24b6\u24d0", "x\u0338=\u0338",
]
CODE = [
    "def f(x):\n    return x**2 + 1\n", "int main(void) {\n\tprintf(\"%d\\n\", 42);\n\treturn 0;\n}\n", "for (size_t i = 0; i < n; ++i) { a[i] += b[i]; }",
    "#include <vector>\n#define X(a, b) ((a) ## (b))\n", "SELECT * FROM t WHERE a >= 10 AND b != 'x';", "<div class=\"a b\">&nbsp;<br/></div>",
    "https://example.org/path?q=1&r=%20#frag", "user.name+tag@example.co.uk", "C:\\Users\\x\\file.txt", "/usr/local/lib/python3.11/", "0xDEADBEEF 1e-9 3.14159 -0.0",
    "a=b==c!=d<=e>=f->g=>h::i...j??k", "!!!???...,,,;;;:::", "---===***___###", "{{{}}}[[[]]]((()))", "`code` **bold** _it_ ~~no~~", "\\alpha \\frac{1}{2} $x^2$",
    "if(a&&b||!c)return;", "x = {'a': [1, 2, {'b': None}]}", "\"quoted\" 'single' “curly” ‘curly’ «guillemets» 「kagi」", "$100 €50 £20 ¥1000 ₹5 ₿1", "2 + 2 = 4 × 3 ÷ 2 ± 1 ≠ ∞",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE", "foo_bar123baz", "v1.2.3-rc.4+build.5", "@decorator\nclass A(B):\n  pass", "fn main() -> Result<(), Box<dyn Error>> {",
    "lambda x: x if x else -x", "\t\tindented\n\t\t\tmore", "// comment /* block */ # hash -- dash", "a\\nb\\tc", "__init__ __main__", "i++ + ++i", "%s %d %5.2f %%", "~/.bashrc && echo $HOME",
]
SPACE = [
    "", " ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\n ", " \n \n ", "  \n  ", "\t\n\t", "a  b", "a   b", "a    b", " a", "  a", "   a", "a ", "a  ", "a   ",
    "a\nb", "a\n\nb", "a \n b", "a\r\nb", "a\tb", "a\t\tb", "a \tb", "a\t b", "\u00a0", "a\u00a0b", "\u3000a\u3000b", "\u2003x\u2009y", "\u2028line\u2029para", "\u0085next", "\u200b\u200bzero", "a\u200db", "\ufeffbom", "x\u180ey \u180e z",
    " " * 17, " " * 100, "\n" * 33, "x" + " " * 40 + "y", "\t" * 9 + "z", " leading and trailing ", "\n leading newline", "trailing newline\n", "a\vb\fc", "\u1680ogham\u202fnarrow\u205fmath",
]
DIGITS = [
    "0", "1", "12", "123", "1234", "12345", "1234567890", "3.14", "1,000,000", "1 2 3", "a1b22c333d4444", "2024-01-31T23:59:59Z", "+1 (555) 010-9999", "٠١٢٣٤٥", "०१२३", "๑๒๓", "一二三", "x²+y³", "1st 2nd 3rd 4th", "007", "0b1010", "1_000", "१२३abc456",
    "99.9%", "½cup", "10⁹", "H₂O", "𝟘𝟙𝟚", "Ⅻ", "1/2",
]
ODD = [
    "\0", "a\0b", "\0\0\0", "\x01\x02\x03", "\x7f", "\x1b[31mred\x1b[0m", "\ufffd", "\ufffdx\ufffd", "\U0010ffff", "\U0001f9ff\U0001f3fb", "\U00020000\U0002a6d6", "𝒜𝓑𝔠𝕯", "\ue000private", "\ufdd0", "¡¿ªº", "ÀÁÂÃÄÅ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababababababab", "AAAAaaaaAAAAaaaa", "Mississippi", "supercalifragilisticexpialidocious", "antidisestablishmentarianism", "x" * 500, "ab" * 300, "日" * 200, "😀" * 60, "don't", "DON'T", "Don’t", "'s 't 're 've 'm 'll 'd 'S 'T", "''s", "x'sy", "'ſ", "ſ's",
    "hello world", "Hello, World!", "HELLO WORLD", "hello  world", "hello\tworld", "Hello\n\nWorld\n", "▁", "a▁b", "▁▁▁", " ▁ ", "Ġ Ċ ĉ", "ĠĠhello", "<0x41>", "<0xE4><0xBD>", "<unk>", "<pad>", "İ", "ǰ", "ΑΣ ΟΔΟΣ",
]
SPECIAL = [
    "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|>", " <|im_end|> ", "<|im_end", "<|im_end|", "|im_end|>", "<<|im_end|>>", "<s>hi</s>", "<s> hi </s>", "</s><s>", "<|begin_of_text|>x<|eot_id|>",
    "<｜begin▁of▁sentence｜>你好<｜User｜>hi<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>\nok\n</think>\n\n", "<tool_call>{\"name\": \"f\"}</tool_call>", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", "<repo_name>x<file_sep>y",
    "[LEFT] a [LEFT]b  [LEFT]", "a [RIGHT]  b[RIGHT] c", "a[WORD]b [WORD] c[WORD]", "[WORD]", "été[WORD] [WORD]été", "Ｎorm norm NORM", "x[NORM]y [norm] z", "<e\u0301>", "<é>x", "<|endoftext|><|endoftext|>", "  <s>  ", "<S>", "<end_of_turn>\n<start_of_turn>model\n", "<ab><abc><a>", "<abcd", "<abc",
]
INVALID = [
    b"\x80", b"\xff\xfe", b"a\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"ok \xe4\xbd\xa0\xe5 end", b"\xf8\x88\x80\x80\x80", b"caf\xe9", b"\x00\xff\x00", b"\xe4\xbd" * 5, b"<|im_end\xff|>",
    b"x" + bytes(range(128, 160)) + b"y", bytes(range(256)), b"\xef\xbb\xbfbom",
]
WORDS = ("time year people way day man thing woman life child world school state family student group country problem hand part place case week company system program "
         "question work government number night point home water room mother area money story fact month lot right study book eye job word business issue side kind head house "
         "service friend father power hour game line end member law car city community name president team minute idea kid body information back parent face others level office door "
         "health person art war history party result change morning reason research girl guy moment air teacher force education the of and to in is you that it he was for on are as with "
         "his they at be this have from or one had by but not what all were we when your can said there use an each which she do how their if will up other about out many then them these "
         "so some her would make like him into has look two more write go see no way could my than first been call who its now find long down did get come made may running runner runs "
         "unhappy happiness internationalization tokenization encode decode vectors matrices attention compressed memory latent").split()


def generated(rng, count):
    texts = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 14))]
        if rng.random() < 0.5:
            words[0] = words[0].capitalize()
        text = " ".join(words)
        if rng.random() < 0.3:
            text = text.replace(" ", ", ", 1)
        if rng.random() < 0.2:
            text += " " + str(rng.randint(0, 10 ** rng.randint(1, 9)))
        texts.append(text + rng.choice([".", "!", "?", "", "...", "\n"]))
    return texts


def battery():
    rng = random.Random(20240607)
    entries = [{"text": t} for t in SENTENCES + EMOJI + COMBINING + CODE + SPACE + DIGITS + ODD + SPECIAL]
    entries += [{"text": a + rng.choice([" ", "\n", "", "  "]) + b} for a, b in zip(SENTENCES, rng.sample(SENTENCES + CODE + DIGITS, len(SENTENCES)))]
    pool = [c for t in SENTENCES + EMOJI + COMBINING + CODE + DIGITS for c in t] + list(" \n\t'") * 40
    entries += [{"text": "".join(rng.choice(pool) for _ in range(rng.randint(1, 60)))} for _ in range(90)]
    entries += [{"text": t} for t in generated(rng, 30)]
    entries += [{"hex": b.hex()} for b in INVALID]
    entries += [  # long ones are recipes
        {"repeat": "The quick brown fox, 12 jumps. ", "count": 32000}, {"repeat": "a", "count": 100000}, {"repeat": " ", "count": 20000},
        {"repeat": "ab'll 日本語😀 ", "count": 5000}, {"letters": "abcdefghijklmnopqrstuvwxyz", "seed": 1, "count": 1000000},
        {"letters": "the quick,\n0123456789 é日", "seed": 2, "count": 200000}, {"letters": "e\u0301a \u0308n", "seed": 3, "count": 50000},
    ]
    return entries


def text_of(entry):
    if "text" in entry:
        return entry["text"]
    if "hex" in entry:
        return bytes.fromhex(entry["hex"]).decode("utf-8", errors="replace")
    if "repeat" in entry:
        return entry["repeat"] * entry["count"]
    state, out, letters = entry["seed"], [], entry["letters"]
    for _ in range(entry["count"]):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(letters[(state >> 33) % len(letters)])
    return "".join(out)


def stored(ids):
    """Short lists as they are; long ones as their length and FNV-1a hash over little-endian 32-bit ids."""
    if len(ids) <= 400:
        return ids
    h = 0xcbf29ce484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = ((h ^ byte) * 0x100000001b3) % 2**64
    return {"count": len(ids), "fnv1a": f"{h:016x}"}


def write(name, value):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(name, (OUT / name).stat().st_size, "bytes")


def goldens(name, tok, entries, decode=True):
    ids, plain, decoded = [], {}, {}
    for index, entry in enumerate(entries):
        text = text_of(entry)
        tok.encode_special_tokens = False
        got = tok.encode(text, add_special_tokens=False).ids
        ids.append(stored(got))
        if decode and len(got) <= 400:
            back = tok.decode(got, skip_special_tokens=False)
            if back != text:
                decoded[index] = back
        if len(text) < 1000:
            tok.encode_special_tokens = True
            bare = tok.encode(text, add_special_tokens=False).ids
            if bare != got:
                plain[index] = bare
    tok.encode_special_tokens = False
    with_special = {t: tok.encode(t, add_special_tokens=True).ids for t in ["", "Hello world", " x"]}
    write(f"golden_{name}.json", {"ids": ids, "plain": plain, "decoded": decoded if decode else None, "with_special": with_special})


def corpus():
    rng = random.Random(7)
    texts = generated(rng, 3000)
    for _ in range(12):
        texts += SENTENCES + CODE + EMOJI + COMBINING
    return texts


def byte_level_gpt2(texts):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.add_special_tokens(["<|im_start|>", "<|im_end|>", AddedToken("[LEFT]", lstrip=True), AddedToken("[RIGHT]", rstrip=True)])
    tok.add_tokens([AddedToken("[WORD]", single_word=True), AddedToken("<ab>"), AddedToken("<abc>"), AddedToken("<a"), AddedToken("<think>", normalized=False)])
    return tok


def llama3_style(texts):
    tok = Tokenizer(models.BPE(ignore_merges=True))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    # Tokens that no sequence of merges reaches: only ignore_merges finds them.
    data = json.loads(tok.to_str())
    vocab = data["model"]["vocab"]
    for word in ["Ġsupercalifragilisticexpialidocious", "Mississippi"]:
        vocab[word] = len(vocab)
    tok = Tokenizer.from_str(json.dumps(data))
    tok.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|endoftext|>"])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                              processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B", special_tokens=[("<|begin_of_text|>", bos)])])
    return tok


def spm_train(texts, kind, size, **more):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type=kind, byte_fallback=True, character_coverage=0.985,
                                             split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, max_sentence_length=100000,
                                             minloglevel=2, num_threads=1, **more)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces_of(sp):
    types = []
    for i in range(sp.get_piece_size()):
        types.append(2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 5 if sp.is_unused(i) else 6 if sp.is_byte(i) else 1)
    user = {"<|im_start|>", "▁▁▁▁", "<think>"}
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    return pieces, [sp.get_score(i) for i in range(len(pieces))], [4 if p in user else t for p, t in zip(pieces, types)]


def spm_goldens(name, sp, entries):
    """SentencePiece has no special tokens in text: the C++ test encodes without parse_special."""
    ids = [stored(sp.encode(text_of(e))) for e in entries]
    pieces, scores, types = pieces_of(sp)
    write(f"vocab_{name}.json", {"tokens": pieces, "scores": scores, "types": types, "bos": sp.bos_id(), "eos": sp.eos_id(), "unknown": sp.unk_id()})
    write(f"golden_{name}.json", {"ids": ids})


def hf_from_spm_bpe(sp):
    pieces, scores, _ = pieces_of(sp)
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = []
    for piece, score in zip(pieces, scores):
        local = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += [(-score, vocab[l], vocab[r], l, r) for l, r in local]
    merges = [(l, r) for _, _, _, l, r in sorted(merges)]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in ["<unk>", "<s>", "</s>"]])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    return tok


def hf_from_spm_unigram(sp):
    pieces, scores, _ = pieces_of(sp)
    tok = Tokenizer(models.Unigram(list(zip(pieces, scores)), unk_id=sp.unk_id(), byte_fallback=True))
    tok.normalizer = normalizers.NFKC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in ["<s>", "</s>"]])
    tok.add_tokens([AddedToken("[NORM]", normalized=True), AddedToken("<e\u0301>", normalized=True)])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", sp.eos_id())])
    return tok


def variants(texts, entries):
    """One tiny vocabulary under many components."""
    P, N = pre_tokenizers, normalizers
    split = lambda pattern, behavior, invert=False: P.Split(pattern, behavior, invert)
    cases = {f"split_{b}_{i}": (None, split(Regex(r"\s+|[,.]"), b, i)) for b in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"] for i in [False, True]}
    cases |= {
        "split_literal": (None, split(" ", "merged_with_previous")), "split_empty_match": (None, split(Regex("b*"), "isolated")), "split_lookbehind": (None, split(Regex(r"(?<=[a-z])(?=[A-Z])"), "isolated")),
        "split_anchors": (None, split(Regex(r"^\w+|\d+$"), "isolated")), "split_script": (None, split(Regex(r"\p{Han}+|\p{Hiragana}+|\p{Cyrillic}+"), "isolated")), "split_word": (None, split(Regex(r"\w+|[^\w\s]+"), "isolated")),
        "digits": (None, P.Digits(individual_digits=False)), "digits_each": (None, P.Digits(individual_digits=True)), "whitespace": (None, P.Whitespace()), "whitespace_split": (None, P.WhitespaceSplit()),
        "punctuation": (None, P.Punctuation()), "punctuation_contiguous": (None, P.Punctuation("contiguous")), "char_delimiter": (None, P.CharDelimiterSplit("e")),
        "sequence": (None, P.Sequence([P.WhitespaceSplit(), P.Punctuation(), P.Digits(True)])),
        "metaspace_always": (None, P.Metaspace(prepend_scheme="always")), "metaspace_never": (None, P.Metaspace(prepend_scheme="never")), "metaspace_no_split": (None, P.Metaspace(prepend_scheme="first", split=False)),
        "nfc": (N.NFC(), P.Whitespace()), "nfd": (N.NFD(), P.Whitespace()), "nfkc": (N.NFKC(), P.Whitespace()), "nfkd": (N.NFKD(), P.Whitespace()), "lowercase": (N.Lowercase(), P.Whitespace()),
        "strip": (N.Strip(), P.Digits(False)), "strip_left": (N.Strip(left=True, right=False), P.Digits(False)), "accents": (N.Sequence([N.NFD(), N.StripAccents()]), P.Whitespace()),
        "replace": (N.Sequence([N.Replace("a", "bb"), N.Replace(Regex(r"\s+"), " "), N.Prepend("_")]), P.Whitespace()),
    }
    out = []
    rng = random.Random(3)
    chosen = sorted(rng.sample([i for i, e in enumerate(entries) if "text" in e and len(e["text"]) < 120], 110))
    for name, (normalizer, pre) in cases.items():
        tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=name.startswith("split")))
        if normalizer is not None:
            tok.normalizer = normalizer
        tok.pre_tokenizer = pre
        tok.train_from_iterator(texts[::7], trainers.BpeTrainer(vocab_size=260, limit_alphabet=90, special_tokens=["<unk>"], show_progress=False))
        ids = {i: tok.encode(entries[i]["text"], add_special_tokens=False).ids for i in chosen}
        out.append({"name": name, "tokenizer": json.loads(tok.to_str()), "ids": ids})
    write("variants.json", out)


def smollm2(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    return tok


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--gguf")
    arguments.add_argument("--shared", default=str(OUT.parents[3] / "shared"))
    options = arguments.parse_args()
    entries, texts = battery(), corpus()
    print(len(entries), "texts")
    write("battery.json", entries)

    for name, tok in {"byte_level_gpt2": byte_level_gpt2(texts), "llama3_style": llama3_style(texts)}.items():
        (OUT / f"{name}.tokenizer.json").write_text(tok.to_str(pretty=False))
        goldens(name, tok, entries)
    lines = [t.replace("\n", " ") for t in texts]
    bpe = spm_train(lines, "bpe", 1500, user_defined_symbols=["<|im_start|>", "▁▁▁▁"])
    spm_goldens("spm_bpe", bpe, entries)
    plain_bpe = spm_train(lines, "bpe", 1500)
    tok = hf_from_spm_bpe(plain_bpe)
    (OUT / "spm_bpe.tokenizer.json").write_text(tok.to_str(pretty=False))
    goldens("spm_bpe_merges", tok, entries)
    tok = hf_from_spm_unigram(spm_train(lines, "unigram", 1200))
    (OUT / "unigram.tokenizer.json").write_text(tok.to_str(pretty=False))
    goldens("unigram", tok, entries)
    variants(texts, entries)

    shared = pathlib.Path(options.shared) / "data/tokenizers"
    for name in ["qwen3", "deepseek_v3"]:
        if (shared / name).is_dir():
            goldens(name, Tokenizer.from_file(str(shared / name / "tokenizer.json")), entries)
    if options.gguf:
        goldens("smollm2", smollm2(options.gguf), entries)


if __name__ == "__main__":
    main()
