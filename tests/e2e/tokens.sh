#!/usr/bin/env bash
# Text to a vocabulary of its own, to shards, to a model, to text; and what is refused on the way.
source "$(dirname "$0")/common.sh" "$@"
cd "$WORK"

awk '{ printf "{\"id\": %d, \"text\": \"%s\"}\n", NR, $0 }' <(tr -d '"\\' <text/text.txt) >lines.jsonl
gzip -k lines.jsonl
"$BRAID" data train-tokenizer --vocab-size 320 --out tokenizer.json lines.jsonl >/dev/null
"$BRAID" data train-tokenizer --vocab-size 320 --out again.json text >/dev/null
"$BRAID" data tokenize --tokenizer tokenizer.json --out set --shard-tokens 20000 --jobs 3 lines.jsonl >tokenize.log 2>&1
"$BRAID" data tokenize --tokenizer tokenizer.json --out packed --shard-tokens 20000 --jobs 1 - <lines.jsonl.gz >/dev/null 2>&1
cmp <("$BRAID" data dump set) <("$BRAID" data dump packed) || fail "standard input and .gz give other ids"
[ "$("$BRAID" data dump set | wc -l)" = "$(wc -l <lines.jsonl)" ] || fail "not one line of ids per document"
cmp <("$BRAID" data dump set --documents 10:13) <("$BRAID" data dump set | sed -n 11,13p) || fail "--documents takes others"
"$BRAID" data verify set >/dev/null
"$BRAID" data inspect set >/dev/null
pass "a dataset of $("$BRAID" data dump set | wc -w) tokens, the same from a pipe"

source_of() { echo "data.sources=[{name: set, dataset: $WORK/$1}]"; }
"$BRAID" config check "$TINY" "$(source_of set)" model.vocab_size=320 >/dev/null
train 2 "$WORK/run" "$(source_of set)" model.vocab_size=320 parallel.expert=2 run.steps=8 checkpoint.interval_steps=8
[ "$(sha256sum <run/tokenizer.json)" = "$(sha256sum <tokenizer.json)" ] || fail "the run has not kept its tokenizer"
text=$("$BRAID" generate run --prompt 'Licensed under' --tokens 30 --temperature 0)
[[ $text == 'Licensed under'* ]] || fail "generated: $text"
"$BRAID" eval run >/dev/null 2>&1
"$BRAID" ckpt export --from run --to exported >/dev/null
cmp exported/tokenizer.json tokenizer.json || fail "the export has another tokenizer"
pass "trained, generated and exported with it"

expect_error 3 'does not fit model.vocab_size 258' "$BRAID" config check "$TINY" "$(source_of set)"
expect_error 3 'nowhere: does not exist' "$BRAID" config check "$TINY" "data.sources=[{name: x, shards: [$WORK/nowhere]}]"
"$BRAID" config check "$TINY" --no-data "$(source_of nowhere)" >/dev/null
expect_error 3 'is part of source a and of source b' "$BRAID" train "$TINY" run.dir=leak model.vocab_size=320 \
  "data.sources=[{name: a, dataset: $WORK/set}, {name: b, shards: [$WORK/set/shard-00000.h5]}]"
expect_error 3 'needs? the same' "$BRAID" train "$TINY" run.dir=mixed model.vocab_size=320 \
  "data.sources=[{name: a, dataset: $WORK/set}, {name: b, text: [$WORK/text]}]"
expect_error 3 'holds a dataset already' "$BRAID" data tokenize --tokenizer bytes --out set lines.jsonl
printf '\377' | dd of=set/shard-00000.h5 bs=1 seek=5000 conv=notrunc 2>/dev/null
expect_error 3 'the dataset is damaged' "$BRAID" data verify set
grep -q 'block 0 is damaged (bytes 0 to .*, tokens 0 to' out || fail "the damaged block is not named"
mv run/tokenizer.json gone.json
expect_error 3 'tokenizer.json: is missing' "$BRAID" generate run
echo '{"model": {"type": "Unigram"}}' >other.json
expect_error 3 "model.type is 'Unigram'" "$BRAID" data tokenize --tokenizer other.json --out o lines.jsonl
expect_error 2 'documents' "$BRAID" data dump packed --documents 5
echo "$checks checks passed"
