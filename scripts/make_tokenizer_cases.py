#!/usr/bin/env python3
"""Writes tests/data/tokenizers: small byte-level vocabularies and texts with the ids that the `tokenizers` package gives.

pip install tokenizers, then scripts/make_tokenizer_cases.py. Texts are stored as hex, as some are not UTF-8.
"""
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/data/tokenizers"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
GPT4 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|" + REST


def split(pattern, behavior="isolated", invert=False):
    return [pre_tokenizers.Split(Regex(pattern), behavior, invert), pre_tokenizers.ByteLevel(False, use_regex=False)]


def train(name, vocab_size, steps, ignore_merges=False, normalizer=None, tokens=()):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(TRAINING, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if ignore_merges:  # a word of the vocabulary that no merge leads to
        state = json.loads(tokenizer.to_str())
        state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) != "Ġthe"]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(list(tokens))
    state = json.loads(tokenizer.to_str())
    (OUT / f"{name}.json").write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")) + "\n")
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        cases.append({"text": text.hex(), "ids": ids})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (OUT / f"{name}_cases.json").write_text(f'{{"tokenizers": "{tokenizers.__version__}", "cases": [\n{lines}\n]}}\n')


MULTILINGUAL = """Привет, мир! Как дела? γειά σου κόσμε שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก
გამარჯობა こんにちは世界、カタカナ 你好，世界！ 안녕하세요 세계 Việt Nam đẹp lắm, cà phê sữa đá ბათუმი ሰላም ልዑል বাংলা ভাষা
"""
TRAINING = [(OUT / "training.txt").read_text()] * 3 + [(ROOT / "LICENSE").read_text()]
TEXTS = [t.encode() for t in [
    "a", " ", "\n", "Hello, world!", "the the  the\n\n the\t the\r\n  x", "   leading and trailing   ", "I'm you're WE'LL it'ſ he'd 'K",
    "1 12 123 1234567 ٣٤٥ ²½ Ⅷ", "void rms_norm_forward(Context& ctx, Tensor y);\n\tif (N == 0) return;  // rows\n",
    MULTILINGUAL, "e\u0301 a\u0323\u0302 \u1e9b\u0323 \u0344 \u212b \u2126 \u0958 \ufb1d \uac00\u11a8 \u1100\u1161\u11a8",
    "q\u0307\u0323\u0307 a\u0345\u0301\u0334 a\u0323\u08d3\u0323 \U000105d2\u0307 \U00011935\U00011930",
    "\u180e x\u180ey \u3000z\u00a0w\u2028v\u0085u\x0b\x0c\x1c", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 💩💩 ✌🏽", "\U00031350\U0002ebf0 \u1c89\u1c8a \U00010d40\U00010d41",
    "<|endoftext|>a<|endoftext|><|endoftext|", "x <mask>  y<mask> <pad>   z <pad>", "<think>a</think><th", "e\u0301<caf\u00e9>cafe\u0301 <cafe\u0301>",
    "a" * 300, " " * 300 + "x", "\n" * 200, "0123456789" * 30, "ab" * 200, "漢字かな" * 60, "e\u0301" * 150, "a" + "\u0301" * 200, "!?" * 150 + "\r\n\r\n"]]
TEXTS += [b"\xff", b"a\xc3", b"\xe2\x82", b"\xe2\x82 \xf0\x9f\x98", b"\xed\xa0\x80\xc0\xaf\xf5\x80\x80\x80", b"ok\x80\x80ok\xf4\x90\x80\x80\xfe"]


def random_texts():
    rng = random.Random(1)
    ranges = [(0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x52f), (0x590, 0x5f4), (0x600, 0x6ff),
              (0x900, 0x97f), (0xe00, 0xe5b), (0x1100, 0x11ff), (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3),
              (0x1f300, 0x1faff), (0, 0xd7ff), (0xe000, 0x33fff)]
    for _ in range(60):
        text = ""
        for _ in range(rng.randint(1, 12)):
            low, high = rng.choice(ranges)
            text += "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))) + rng.choice(["", " ", "\n", "'s", "\u0301"])
        yield text.encode()


TEXTS += list(random_texts())

def train_like_braid():
    """What BpeTrainer must learn from training.txt, which stays as it is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split(QWEN))
    tokenizer.train_from_iterator([(OUT / "training.txt").read_text()], trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    (OUT / "trained.json").write_text(json.dumps({"vocab": model["vocab"], "merges": model["merges"]}, ensure_ascii=False,
                                                 separators=(",", ":")) + "\n")


if __name__ == "__main__":
    train_like_braid()
    train("qwen", 640, split(QWEN), normalizer=normalizers.NFC(),
          tokens=[AddedToken("<think>", normalized=False), AddedToken("<mask>", lstrip=True, normalized=False),
                  AddedToken("<pad>", rstrip=True, normalized=False), AddedToken("<caf\u00e9>", normalized=True)])
    train("gpt4", 560, split(GPT4, "removed", True), ignore_merges=True)
    train("chained", 400, [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.Split(Regex("[一-龥ぁ-ヿ]+"), "isolated"),
                           pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
