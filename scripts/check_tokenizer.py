#!/usr/bin/env python3
"""Compares `braid data tokenize` with the `tokenizers` package on mixed text: every id, and tokens per second of one core.

pip install tokenizers; scripts/check_tokenizer.py TOKENIZER.json [--megabytes 100]. The text is made on the spot from what every
Debian has (C++ headers, Python and Perl sources, translations in all languages of /usr/share/locale) and from random text:
many scripts, emoji, combining marks, broken UTF-8, very long lines.
"""
import argparse
import base64
import gettext
import glob
import os
import pathlib
import random
import resource
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
RANGES = [(0x41, 0x7a), (0xc0, 0x24f), (0x370, 0x3ff), (0x400, 0x52f), (0x531, 0x58f), (0x590, 0x5f4), (0x600, 0x6ff), (0x900, 0x97f),
          (0x980, 0x9fe), (0xe00, 0xe5b), (0x10a0, 0x10ff), (0x1100, 0x11ff), (0xac00, 0xd7a3), (0x3040, 0x30ff), (0x4e00, 0x9fff),
          (0x20000, 0x2a6df), (0x1780, 0x17f9), (0xf00, 0xfda), (0x1e00, 0x1fff), (1, 0x2ff), (0x2000, 0x2bff), (0x1f300, 0x1faff),
          (0x300, 0x36f), (0xfb00, 0xfeff), (1, 0x10ffff), (0xa000, 0xabff), (0x10000, 0x12000)]
EXTRAS = ["\u0301", "\u0323\u0301", "\u200d", "\ufe0f", "12345", "'s", "'ſ", "'LL", " \n", "\r\n\n", "\t ", "\u180e", "\u3000",
          "<|endoftext|>", "<|im_start|>", "<think>", "!!", "...", "💩👨‍👩‍👧", "\U0001F1E9\U0001F1EA"]


def found(pattern, size, rng):
    files = sorted(f for f in glob.glob(pattern, recursive=True) if os.path.isfile(f))
    rng.shuffle(files)
    for name in files:
        if size <= 0:
            return
        data = pathlib.Path(name).read_bytes()
        if b"\0" not in data and len(data) < 2_000_000:
            size -= len(data)
            yield data


def translations(size, rng):
    files = sorted(glob.glob("/usr/share/locale/*/LC_MESSAGES/*.mo"))
    rng.shuffle(files)
    for name in files:
        if size <= 0:
            return
        try:
            with open(name, "rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog
        except (OSError, UnicodeError, ValueError, IndexError):
            continue
        data = "\n".join(v for v in catalog.values() if isinstance(v, str)).encode()
        size -= len(data)
        yield data


def words(rng, count):
    low, high = rng.choice(RANGES)
    out = []
    for _ in range(count):
        points = [rng.randint(low, high) for _ in range(rng.randint(1, 9))]
        out.append("".join(chr(p) for p in points if not 0xd800 <= p < 0xe000))
        if rng.random() < 0.15:
            out.append(rng.choice(EXTRAS))
    return rng.choice([" ", "", " ", "\n"]).join(out).encode()


def random_texts(size, rng):
    while size > 0:
        data = bytearray(words(rng, rng.randint(5, 3000)))
        if rng.random() < 0.1:
            for _ in range(1 + len(data) // 200):
                data[rng.randrange(len(data))] = rng.randrange(1, 256)
        size -= len(data)
        yield bytes(data)


def long_lines(size, rng):
    while size > 0:
        for data in (base64.b64encode(rng.randbytes(300000)), b"a" * 200000, b" " * 200000 + b"x", ("漢字" * 60000).encode(),
                     b"\n" * 100000, bytes(rng.choices(b"ab", k=200000)), ("e\u0301" * 50000).encode(), b"0123456789" * 20000,
                     ("a" + "\u0301" * 3000).encode(), rng.randbytes(100000).replace(b"\0", b"")):
            size -= len(data)
            yield data


def corpus(size):
    rng = random.Random(1)
    for part in (found("/usr/include/**/*.h*", size * 0.2, rng), found("/usr/lib/python3*/**/*.py", size * 0.2, rng),
                 found("/usr/share/perl/**/*.p[lm]", size * 0.1, rng), translations(size * 0.3, rng), random_texts(size * 0.2, rng),
                 long_lines(size * 0.02, rng)):
        yield from part


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--braid", default=str(ROOT / "build/release/braid"))
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        texts, size = [], 0
        while size < options.megabytes * 1e6:  # a second time round where this machine has less text
            for data in corpus(options.megabytes * 1e6):
                texts.append(data)
                size += len(data)
                if size >= options.megabytes * 1e6:
                    break
        os.makedirs(f"{folder}/text")
        for number, data in enumerate(texts):
            pathlib.Path(f"{folder}/text/{number:07}.txt").write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([options.braid, "data", "tokenize", "--tokenizer", options.tokenizer, "--out", f"{folder}/out", "--jobs", "1",
                        f"{folder}/text"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        braid_seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        dump = subprocess.Popen([options.braid, "data", "dump", f"{folder}/out"], stdout=subprocess.PIPE)
        tokens, different, seconds = 0, 0, 0.0
        for number, (data, line) in enumerate(zip(texts, dump.stdout, strict=True)):
            text = data.decode("utf-8", "replace")
            begin = time.process_time()
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            seconds += time.process_time() - begin
            tokens += len(ids)
            if list(map(int, line.split())) != ids:
                different += 1
                print(f"document {number} differs: {text[:60]!r}")
        if dump.wait() != 0:
            raise SystemExit("braid data dump failed")
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB, {tokens} tokens, {different} documents differ")
    print(f"tokenizers {tokens / seconds / 1e6:.3f} million tokens/s of CPU time, braid (the whole command) "
          f"{tokens / braid_seconds / 1e6:.3f}: {seconds / braid_seconds:.1f} times; braid's peak memory {after.ru_maxrss / 1024:.0f} MiB")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
