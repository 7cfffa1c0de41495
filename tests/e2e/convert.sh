#!/usr/bin/env bash
# Import from and export to Hugging Face folders, runs that start from an imported model, and kills in between.
source "$(dirname "$0")/common.sh" "$@"
MAKE_MODEL_FOLDER=$3

quiet() { "$@" >"$WORK/log" 2>&1 || { cat "$WORK/log" >&2; fail "$*"; }; }
same_folder() { diff -r "$1" "$2" >/dev/null || fail "$1 and $2 differ"; }

# a trained run of another layout -> Hugging Face -> checkpoint -> Hugging Face
run=(run.steps=2 eval.interval_steps=0)
train 2 "$WORK/trained" "${run[@]}" parallel.expert=2
quiet "$BRAID" ckpt export --from "$WORK/trained" --to "$WORK/hf"
quiet "$BRAID" ckpt import --from "$WORK/hf" --to "$WORK/imported"
quiet "$BRAID" ckpt verify "$WORK/imported"
quiet "$BRAID" ckpt export --from "$WORK/imported" --to "$WORK/hf-again"
same_folder "$WORK/hf" "$WORK/hf-again"
pass "a trained run exported, imported and exported again: the same bytes"
for model in "$WORK/hf/config.json" "$WORK/hf" "hf:$WORK/hf" "$WORK/trained"; do
  "$BRAID" plan "$model" --ranks 2 --device 80GB train.seq_length=64 train.global_batch_size=2 >"$WORK/plan"
  grep -q '^fits 80GB, .* to spare' "$WORK/plan" || { cat "$WORK/plan"; fail "plan of $model"; }
done
expect_error 2 'is a folder without config.json' "$BRAID" plan "$WORK"
"$BRAID" config print "$WORK/hf" >"$WORK/model.yaml"
[ "$(grep -c '^[a-z]' "$WORK/model.yaml")" = 1 ] || fail "config print of a model says more than its section"
"$BRAID" config diff "$WORK/hf" "$WORK/trained" | grep '^model\.' && fail "the model of a run and of its export differ"
"$BRAID" config diff "$WORK/model.yaml" "hf:$WORK/hf" | grep -x 'no key differs' || fail "a printed model is another one"
pass "a Hugging Face config.json, a folder of it and of a run are planned as they are"
quiet "$BRAID" ckpt export --from "$WORK/trained" --to "$WORK/hf-bf16" --dtype bf16
quiet "$BRAID" ckpt import --from "$WORK/hf-bf16" --to "$WORK/imported-bf16"
"$BRAID" ckpt inspect "$WORK/imported-bf16" | grep -q 'step 0, 0 tokens' || fail "an imported checkpoint is of step 0"
wide=$(stat -c %s "$WORK/hf/model.safetensors") narrow=$(stat -c %s "$WORK/hf-bf16/model.safetensors")
[ $((narrow * 2 - wide)) -lt 100000 ] && [ $((narrow * 2 - wide)) -ge 0 ] || fail "$narrow bytes in bf16, $wide in fp32"
quiet "$BRAID" generate "$WORK/imported" --tokens 2
pass "bf16 takes half the bytes, and an imported model generates"

# runs that start from these weights: the same first loss whatever the layout, and not that of random weights
train 0 "$WORK/from-run" "${run[@]}" "init.from=$WORK/trained"
train 0 "$WORK/from-1" "${run[@]}" "init.from=$WORK/imported"
train 2 "$WORK/from-2" "${run[@]}" "init.from=$WORK/imported" parallel.expert=2
same_numbers "$WORK/from-run" "$WORK/from-1" "started from a run and from its import"
first_step() { mkdir -p "$1-first"; numbers "$1" | sed -n 1p >"$1-first/metrics.jsonl"; }
train 0 "$WORK/random" "${run[@]}"
for name in from-1 from-2 random; do first_step "$WORK/$name"; done
close_numbers "$WORK/from-1-first" "$WORK/from-2-first" 3e-6
cmp -s "$WORK/from-1-first/metrics.jsonl" "$WORK/random-first/metrics.jsonl" && fail "init.from changed nothing"
train 0 "$WORK/other-model" "${run[@]}" "init.from=$WORK/imported" model.rope_theta=5000
grep -q '^note: model.rope_theta was [0-9.e+]* there and is 5000' "$WORK/other-model.log" || fail "no note about another model"
pass "init.from gives the same first loss on 1 and 2 ranks"

# a resume does not need the folder any more, and the run goes on as if it had never stopped
train 0 "$WORK/straight" "${run[@]}" run.steps=4 "init.from=$WORK/imported-bf16"
train 0 "$WORK/stopped" "${run[@]}" run.steps=4 checkpoint.interval_steps=2 "init.from=$WORK/imported-bf16"
rm -r "$WORK/imported-bf16" "$WORK/stopped/checkpoints/step-000000004"
train 0 "$WORK/stopped" "${run[@]}" run.steps=4 "init.from=$WORK/imported-bf16" --resume
same_numbers "$WORK/straight" "$WORK/stopped" "resumed without the folder of init.from"
pass "resumed without the folder that init.from names: the same bits"

# straight from a Hugging Face folder, also with what it lacks
train 0 "$WORK/from-hf" "${run[@]}" "init.from=hf:$WORK/hf"
train 2 "$WORK/from-hf-2" "${run[@]}" "init.from=hf:$WORK/hf" parallel.expert=2
same_numbers "$WORK/from-1" "$WORK/from-hf" "started from an import and from the folder itself"
same_numbers "$WORK/from-2" "$WORK/from-hf-2" "the same on two ranks"
train 0 "$WORK/without-mtp" "${run[@]}" mtp.depth=0
quiet "$BRAID" ckpt export --from "$WORK/without-mtp" --to "$WORK/hf-without-mtp"
train 0 "$WORK/new-mtp" "${run[@]}" "init.from=hf:$WORK/hf-without-mtp" init.fresh_mtp=true
grep -q '^note: the MTP block is new' "$WORK/new-mtp.log" || fail "a new MTP block is not mentioned"
train 0 "$WORK/more-tokens" "${run[@]}" "init.from=hf:$WORK/hf" init.resize_vocabulary=true model.vocab_size=300
grep -q '^note: tokens 258 to 299 of the vocabulary are new' "$WORK/more-tokens.log" || fail "new tokens are not mentioned"
pass "init.from=hf:DIR trains like its import, with a new MTP block and more tokens where asked for"

# what cannot be done is said in one sentence
start() { "$BRAID" train "$TINY" "run.dir=$WORK/refused" "$@"; }
expect_error 4 'neither a checkpoint nor a run folder' start "init.from=$WORK/absent"
expect_error 4 'is no folder on this machine' start "init.from=hf:$WORK/absent"
expect_error 4 'its vocabulary has 258 tokens, .* 300: set init.resize_vocabulary=true' start "init.from=$WORK/imported" model.vocab_size=300
expect_error 4 'holds no tensor weights/model.layers' start "init.from=$WORK/imported" model.num_hidden_layers=8
train 0 "$WORK/no-mtp" "${run[@]}" mtp.depth=0
expect_error 4 'holds no MTP block .* init.fresh_mtp=true' start "init.from=$WORK/no-mtp"
expect_error 4 'holds weights alone' start "--resume-from" "$WORK/imported"
expect_error 9 'is there already and is not empty' "$BRAID" ckpt import --from "$WORK/hf" --to "$WORK/imported"
expect_error 9 'is there already and is not empty' "$BRAID" ckpt export --from "$WORK/imported" --to "$WORK/hf"
expect_error 4 "hf: is a Hugging Face folder; init.from takes it as hf:.*, and .braid ckpt import" "$BRAID" ckpt export --from "$WORK/hf" --to "$WORK/new"
expect_error 4 "neither a checkpoint nor a run folder" "$BRAID" ckpt export --from "$WORK/absent" --to "$WORK/new"
expect_error 4 'config.json' "$BRAID" ckpt import --from "$WORK/imported" --to "$WORK/new"
[ ! -e "$WORK/new" ] && [ ! -e "$WORK/.tmp-new" ] || fail "a refused command left something"

# killed at some moment: nothing of that name, or all of it; the next attempt works
quiet "$MAKE_MODEL_FOLDER" "$WORK/large" 1 16
killed=0
kill_and_repeat() {  # kill_and_repeat EXPECTED_FOLDER COMMAND...: `COMMAND --to EXPECTED_FOLDER` again and again
  local expected=$1 victim=$WORK/victim start nanoseconds percent job
  shift
  rm -rf "$expected"
  start=$(date +%s%N)
  quiet "$@" --to "$expected"
  nanoseconds=$(($(date +%s%N) - start))
  for percent in 5 30 55 80 95; do
    "$@" --to "$victim" >/dev/null 2>&1 &
    job=$!
    sleep "$(awk "BEGIN { print $nanoseconds * $percent / 1e11 }")"
    kill -KILL $job 2>/dev/null && killed=$((killed + 1))
    wait $job 2>/dev/null || true
    [ -e "$victim" ] || quiet "$@" --to "$victim"
    same_folder "$expected" "$victim"
    [ ! -e "$WORK/.tmp-victim" ] || fail "a temporary folder is left"
    rm -r "$victim"
  done
}
kill_and_repeat "$WORK/whole" "$BRAID" ckpt import --from "$WORK/large"
kill_and_repeat "$WORK/large-again" "$BRAID" ckpt export --from "$WORK/whole"
cmp -s "$WORK/large/model.safetensors" "$WORK/large-again/model.safetensors" || fail "the large model changed"
[ "$killed" -ge 4 ] || fail "only $killed of 10 kills came in time"
pass "import and export killed at $killed points: nothing or all, and the next attempt works"
echo "$checks passed, 0 failed"
