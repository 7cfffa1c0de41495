#!/usr/bin/env python3
"""Texts to learn from what `braid eval --passkey` asks: a number said once, and asked for somewhere behind.

Writes JSON lines, one document each. A document hides a key of five digits in sentences that say nothing, and asks for it
behind them, in the words of trainer/passkey.cpp, whose prompts end with the question; every second document asks several
times. Keys come from another source of random numbers than those of the prompts, so a prompt is new to the model but for
chance. Of all bytes as many are in documents of 200 to 400 as in those of 400 to 800 and so on, so that there is something to
learn on short ways before long ones. Some documents are numbers in a row, all of them said twice: half of what they hold can be
read off, and copying is learnt there first.

    scripts/passkey_text.py --bytes 4095 --size 64e6 --out passkey.jsonl
"""
import argparse
import json
import random

SENTENCES = ("The grass is green. ", "The sky is blue. ", "The sun is yellow. ", "Here we go. ", "There and back again. ",
             "A river runs to the sea. ", "The wind comes from afar. ", "Nobody counts the leaves. ")
QUESTION = "What is the pass key? The pass key is "


def document(rng, length, gap):
    """A text of at most `length` bytes; a question every `gap` bytes or so, or none, and one at the end."""
    key = f"{rng.randrange(100000):05d}"
    needle = f"The pass key is {key}. Remember it. {key} is the pass key. "
    answer = f"{QUESTION}{key}. "
    longest = max(map(len, SENTENCES))
    room = length - len(needle) - len(answer) - longest
    before = rng.uniform(0, room)
    parts, size = [], 0

    def say(text):
        nonlocal size
        parts.append(text)
        size += len(text)

    while size < before:
        say(rng.choice(SENTENCES))
    say(needle)
    asked = size
    wait = rng.expovariate(1 / gap) if rng.random() < 0.5 else length
    while size + len(answer) + longest <= length:
        if size - asked > wait and size + 2 * len(answer) + longest <= length:
            say(answer)
            asked, wait = size, rng.expovariate(1 / gap)
        say(rng.choice(SENTENCES))
    say(answer)
    return "".join(parts)


def numbers(rng, length):
    """Numbers of five digits, and the same once more, in at most `length` bytes."""
    said = "".join(f"{rng.randrange(100000):05d} " for _ in range(length // 12))
    return said + said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=4095, help="of the longest document (default 4095, a row less its end)")
    parser.add_argument("--shortest", type=int, default=200, help="of the shortest (default 200)")
    parser.add_argument("--gap", type=float, default=400, help="mean bytes between two questions (default 400)")
    parser.add_argument("--numbers", type=float, default=0.3, help="share of the documents that are numbers (default 0.3)")
    parser.add_argument("--size", type=float, default=16e6, help="bytes in all (default 16e6)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if not 200 <= args.shortest <= args.bytes:
        parser.error("--shortest must be 200 at least, and no more than --bytes")
    rng = random.Random(args.seed)
    written = 0
    with open(args.out, "w", encoding="ascii") as out:
        while written < args.size:
            length = round(1 / rng.uniform(1 / args.bytes, 1 / args.shortest))
            if rng.random() < args.numbers:
                text = numbers(rng, min(length, 400))
            else:
                text = document(rng, length, args.gap)
            out.write(json.dumps({"text": text}) + "\n")
            written += len(text)


if __name__ == "__main__":
    main()
