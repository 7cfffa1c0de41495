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

"$BRAID" data split set --out parts --parts 3 >/dev/null
"$BRAID" data merge --out merged --shard-tokens 20000 parts/part-0000{0,1,2} >/dev/null
for file in set/*.h5 set/tokenizer.json; do cmp "$file" "merged/${file#set/}" || fail "split and merged, $file is another"; done
"$BRAID" data convert --from set --to mega.idx >/dev/null
"$BRAID" data convert --from mega.bin --to back --tokenizer tokenizer.json --shard-tokens 20000 >/dev/null
for file in set/*.h5; do cmp "$file" "back/${file#set/}" || fail "to Megatron and back, $file is another"; done
expect_error 3 'set/merged: lies in set, which is read; choose a folder outside of it' "$BRAID" data merge --out set/merged set
expect_error 3 'x/./y: lies in set, which is read' "$BRAID" data split set --out set/../set/x/./y --parts 3
[ ! -e set/merged ] && [ ! -e set/x ] || fail "refused, but the folders are there"
expect_error 2 'split needs either --parts or --held-out' "$BRAID" data split set --out none
expect_error 9 'mega.bin: is there already' "$BRAID" data convert --from set --to mega.bin
pass "split, merged, written for Megatron and read back: the same bytes"

source_of() { echo "data.sources=[{name: set, dataset: $WORK/$1}]"; }
"$BRAID" config check "$TINY" "$(source_of set)" model.vocab_size=320 >/dev/null
train 2 "$WORK/run" "$(source_of set)" model.vocab_size=320 parallel.expert=2 run.steps=8 checkpoint.interval_steps=8
[ "$(sha256sum <run/tokenizer.json)" = "$(sha256sum <tokenizer.json)" ] || fail "the run has not kept its tokenizer"
text=$("$BRAID" generate run --prompt 'Licensed under' --tokens 30 --temperature 0)
[[ $text == 'Licensed under'* ]] || fail "generated: $text"
"$BRAID" eval run >/dev/null 2>&1
loss_of() { "$BRAID" eval run --json "$@" 2>/dev/null | sed 's/.*"val\/[^"]*\/loss": *\([0-9.]*\).*/\1/'; }
[ "$(loss_of --data lines.jsonl)" = "$(loss_of --data set)" ] || fail "a text and its shards have different losses"
[ "$(loss_of --data set/shard-00000.h5 --sequences 3)" != "$(loss_of --data set)" ] || fail "one shard has the loss of all"
head -c 900 lines.jsonl | tr -d '"{}' >plain.txt
[[ $(loss_of --data plain.txt) =~ ^[0-9]+\.[0-9]+$ ]] || fail "no loss of a plain text: $(loss_of --data plain.txt)"
"$BRAID" data tokenize --tokenizer bytes --out byteset plain.txt >/dev/null 2>&1
expect_error 3 'but the model speaks bpe' "$BRAID" eval run --data byteset
"$BRAID" ckpt export --from run --to exported >/dev/null
cmp exported/tokenizer.json tokenizer.json || fail "the export has another tokenizer"
pass "trained, generated and exported with it"

# A mixture whose weights change, read for more than an epoch; every row is named, and no piece comes twice in an epoch.
awk 'NR % 3 == 0' lines.jsonl >third.jsonl
"$BRAID" data tokenize --tokenizer tokenizer.json --out third third.jsonl >/dev/null 2>&1
awk 'NR % 50 == 1' lines.jsonl | sed 's/"text": "/&Held: /' >held.jsonl
"$BRAID" data tokenize --tokenizer tokenizer.json --out held held.jsonl >/dev/null 2>&1
mixture() {
  echo "data.sources=[{name: all, dataset: $WORK/set, weight: 1}, {name: third, dataset: $WORK/third, weight: 2, weight_changes: [$1]}]"
}
first='{from_step: 5, weight: 4}' then='{from_step: 5, weight: 4}, {from_step: 10, weight: 1}'
mixed=(run.dir=mix model.vocab_size=320 data.validation_fraction=0 "data.validation_sets=[{name: held, dataset: $WORK/held}]")
train 2 "$WORK/mix" "$(mixture "$first")" "${mixed[@]}" run.steps=8 eval.interval_steps=8 checkpoint.interval_steps=8
grep -q '"val/held/loss"' mix/metrics.jsonl || fail "the validation set is not evaluated"
expect_error 4 'the weights of data.sources up to step 8 were others' "$BRAID" train "$TINY" "$(mixture '{from_step: 5, weight: 3}')" \
  "${mixed[@]}" run.steps=12 --resume
train 1 "$WORK/mix" "$(mixture "$then")" "${mixed[@]}" run.steps=12 --resume
replay() { "$BRAID" data replay "$TINY" "$(mixture "$then")" "${mixed[@]}" run.steps=4000 "$@"; }
replay --step 1 --steps 1700 >rows.tsv
cmp <(replay --step 7 | tail -n +2) <(awk '$1 == 7' rows.tsv) || fail "a step alone is another"
[ -z "$(tail -n +2 rows.tsv | cut -f 3-7 | sort | uniq -d)" ] || fail "a piece comes twice in an epoch"
[ "$(awk '$1 > 0 { print $4 }' rows.tsv | sort -n | tail -1)" -ge 3 ] || fail "no source is read for 3.5 epochs"
for step in 4 8 12; do
  metric=$(sed -n "s/.*\"step\": *$step,.*\"data\/third\/tokens\": *\([0-9]*\).*/\1/p" mix/metrics.jsonl)
  rows=$(awk -v step=$step '$1 > 0 && $1 <= step && $3 == "third" { print $1, $2 }' rows.tsv | sort -u | wc -l)
  [ "$metric" = $((64 * rows)) ] || fail "metrics say $metric tokens of third by step $step, replay $rows rows"
done
grep -q '"data/third/epoch"' mix/metrics.jsonl || fail "no epochs in the metrics"
expect_error 3 'inside: lies in .*text, which is read' "$BRAID" data tokenize --tokenizer bytes --out "$WORK/text/inside" "$WORK/text"
[ ! -e "$WORK/text/inside" ] || fail "a refused dataset left a folder among the texts"
: >none.txt
expect_error 3 'none.txt: holds no text' "$BRAID" eval mix --data none.txt
echo '{"words": "x"}' >none.json
expect_error 3 'none.json: no document in 1 files; the first: none.json:1: has no key text' "$BRAID" eval mix --data none.json
expect_error 2 '--step: 0 is no whole number from 1 to' replay --step 0
expect_error 3 'of source all, which trains on it, and of validation set held' "$BRAID" config check "$TINY" \
  "$(mixture "$then")" "${mixed[@]}" "data.validation_sets=[{name: held, dataset: $WORK/set}]"
pass "a mixture whose weights change, replayed over $(tail -1 rows.tsv | cut -f 1) steps"

expect_error 3 'does not fit model.vocab_size 258' "$BRAID" config check "$TINY" "$(source_of set)"
printf 'x\0y' >nul.txt
expect_error 3 'nul.txt: holds a NUL byte at 1, so it is not text' "$BRAID" config check "$TINY" "data.sources=[{name: x, text: [$WORK/nul.txt]}]"
expect_error 3 'nowhere: does not exist' "$BRAID" config check "$TINY" "$(source_of nowhere)"
expect_error 3 'shard-00000.h5: is a file, but a dataset is a folder' "$BRAID" config check "$TINY" "$(source_of set/shard-00000.h5)"
expect_error 3 '^braid: nowhere.h5: cannot be opened: No such file' "$BRAID" data convert --from nowhere.h5 --to none
expect_error 2 '3:1, which ends before it begins' "$BRAID" data dump packed --documents 3:1
expect_error 3 'nowhere: does not exist' "$BRAID" config check "$TINY" "data.sources=[{name: x, shards: [$WORK/nowhere]}]"
"$BRAID" config check "$TINY" --no-data "$(source_of nowhere)" >/dev/null
expect_error 3 'is part of source a and of source b' "$BRAID" train "$TINY" run.dir=leak model.vocab_size=320 \
  "data.sources=[{name: a, dataset: $WORK/set}, {name: b, shards: [$WORK/set/shard-00000.h5]}]"
cp set/shard-00000.h5 copy.h5
expect_error 3 'copy.h5: is part of source a and of source b' "$BRAID" config check "$TINY" model.vocab_size=320 \
  "data.sources=[{name: a, dataset: $WORK/set}, {name: b, shards: [$WORK/copy.h5]}]"
expect_error 3 'needs? the same' "$BRAID" train "$TINY" run.dir=mixed model.vocab_size=320 \
  "data.sources=[{name: a, dataset: $WORK/set}, {name: b, text: [$WORK/text]}]"
expect_error 3 'holds a dataset already' "$BRAID" data tokenize --tokenizer bytes --out set lines.jsonl
printf '\377' | dd of=set/shard-00000.h5 bs=1 seek=5000 conv=notrunc 2>/dev/null
expect_error 3 'the dataset is damaged' "$BRAID" data verify set
grep -q 'block 0 is damaged (bytes 0 to .*, tokens 0 to' out || fail "the damaged block is not named"
"$BRAID" selftest isolation "$TINY" >isolation.txt 2>/dev/null || fail "documents are not isolated: $(cat isolation.txt)"
[ "$(grep -c 'kept their bits' isolation.txt)" = 3 ] || fail "not three parts: $(cat isolation.txt)"
grep -q 'MTP' isolation.txt || fail "no MTP block in the test"
"$BRAID" selftest isolation "$TINY" train.seq_length=300 precision=fp64 model.num_experts=2 model.num_experts_per_tok=1 >/dev/null 2>&1 ||
  fail "documents are not isolated in longer rows"
expect_error 2 'rows of at least 16 tokens' "$BRAID" selftest isolation "$TINY" train.seq_length=8
pass "$(tail -1 isolation.txt): $(grep -c 'taken away' isolation.txt) leaks made on purpose are seen"
mv run/tokenizer.json gone.json
expect_error 3 'tokenizer.json: is missing' "$BRAID" generate run
echo '{"model": {"type": "Unigram"}}' >other.json
expect_error 3 "model.type is 'Unigram'" "$BRAID" data tokenize --tokenizer other.json --out o lines.jsonl
expect_error 2 'documents' "$BRAID" data dump packed --documents 5
echo "$checks checks passed"
