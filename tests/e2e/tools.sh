#!/usr/bin/env bash
# What people use around a training, and what the console says.
source "$(dirname "$0")/common.sh" "$@"

# a run that was resumed from an earlier step than it had
run=$WORK/run
train 2 "$run" parallel.expert=2 schedule.warmup_steps=1 run.steps=6 eval.interval_steps=3 checkpoint.interval_steps=2
rm -r "$run"/checkpoints/step-*6
train 2 "$run" parallel.expert=2 schedule.warmup_steps=1 run.steps=8 eval.interval_steps=3 checkpoint.interval_steps=2 --resume

# events, and what a longer run does to the learning rate
for event in started finished resumed changed; do
  grep -q "\"event\":\"$event\"" "$run/events.jsonl" || { cat "$run/events.jsonl" >&2; fail "no event $event"; }
done
grep -q 'run.steps from 6 to 8' "$run/events.jsonl" || fail "the change of run.steps is no event"
pass "events.jsonl tells of the start, the resume, what it changed and the end"
grep -q 'run.steps 6 -> 8: the learning rate was .* at step 4, is .* at step 5 and ends at .*; it rises' "$run.log" ||
  { cat "$run.log" >&2; fail "nothing says what more steps do to the learning rate"; }
pass "a longer run says what becomes of the learning rate"

# the console: the table of parameters is in the run folder, losses have four decimals
! grep -q 'model.layers.0.mlp.experts.gate_up_proj' "$run.log" || fail "the parameter table is on the console"
grep -q 'model.layers.0.mlp.experts.gate_up_proj' "$run/parameters.txt" || fail "the parameter table is not in the run folder"
grep -qE 'held-out loss of fixed [0-9]+\.[0-9]{4} \(unigram entropy [0-9]+\.[0-9]{4}\)' "$run.log" || fail "held-out losses do not have four decimals"
pass "the parameter table is in the run folder, held-out losses have four decimals"

# --quiet and --json
quiet=$("$BRAID" train "$TINY" "run.dir=$WORK/quiet" run.steps=2 checkpoint.interval_steps=0 --quiet)
[ -z "$quiet" ] || fail "--quiet says: $quiet"
"$BRAID" train "$TINY" "run.dir=$WORK/json" run.steps=2 checkpoint.interval_steps=0 --json >"$WORK/out" 2>/dev/null
[ "$(grep -c '"train/loss_lm": ' "$WORK/out")" = 2 ] || { cat "$WORK/out" >&2; fail "--json has not one line per step"; }
! grep -qv '^{.*}$' "$WORK/out" || fail "--json writes lines that are no objects"
[ "$(wc -l <"$WORK/quiet/metrics.jsonl")" = 4 ] || fail "a quiet run has not its metrics: two steps, an evaluation, a save"
pass "--quiet is quiet, --json has an object per line"

# what the program is: the build in the line that scripts take, then what it computes with
"$BRAID" --version >"$WORK/out"
with='with CUDA for architectures [0-9].*(, without| and with) cuDNN'
"$BRAID" train "$TINY" "run.dir=$WORK/no" device=cuda >/dev/null 2>"$WORK/err" || true
! grep -q 'this build of braid has no CUDA' "$WORK/err" || with='without CUDA: CPU only'
[ "$(wc -l <"$WORK/out")" = 2 ] && sed -n 1p "$WORK/out" | grep -qE '^braid [0-9.]+\+[^ ]+ .* [A-Za-z]+$' && sed -n 2p "$WORK/out" | grep -qxE "$with" ||
  { cat "$WORK/out" >&2; fail "--version does not say '$with'"; }
pass "--version says what was built"

# mistyped words, in one sentence
expect_error 2 'braid has no sub-command trian, did you mean train' "$BRAID" trian "$TINY"
expect_error 2 'braid ckpt has no sub-command inspekt, did you mean inspect' "$BRAID" ckpt inspekt x
expect_error 2 'braid train has no option --resum, did you mean --resume' "$BRAID" train "$TINY" --resum
expect_error 2 'braid plan has no option --rank, did you mean --ranks' "$BRAID" plan "$TINY" --rank=4
expect_error 2 'braid config needs a sub-command: check, print' "$BRAID" config
expect_error 2 'braid bench: --device: tpu not in {cuda,cpu}' "$BRAID" bench --device tpu
expect_error 2 'braid parity: --precision: int8 not in {fp32,fp64,bf16}' "$BRAID" parity --model x --reference y --precision int8
expect_error 2 'braid parity: --model is required' "$BRAID" parity --reference y
expect_error 2 'braid report: --out is required .braid report --help' "$BRAID" report x
expect_error 2 'braid plan: --ranks: many is no whole number from 1 to 1048576' "$BRAID" plan "$TINY" --ranks many
expect_error 2 'braid has no sub-command xyzzy; there are .*train' "$BRAID" xyzzy

# arguments: nothing is taken for a number that it is not, and nothing empty for a name
expect_error 2 'eval: --sequences: -1 is no whole number from 0 to' "$BRAID" eval "$run" --sequences -1
expect_error 2 'eval: --sequences: 99999999999999999999 is no whole number' "$BRAID" eval "$run" --sequences 99999999999999999999
expect_error 2 'generate: --tokens: 010 is no whole number' "$BRAID" generate "$run" --tokens 010
expect_error 2 'generate: --temperature: nan is no number from 0 to' "$BRAID" generate "$run" --temperature nan
expect_error 2 'generate: --seed: -1 is no whole number' "$BRAID" generate "$run" --seed -1
expect_error 2 'ckpt diff: --rtol: nan is no number' "$BRAID" ckpt diff "$run" "$run" --rtol nan
for command in 'eval' 'plot' 'train' 'config check' 'ckpt ls' 'data verify'; do
  expect_error 2 "braid $command: [a-z_]+ is empty; is a variable of the shell not set" "$BRAID" $command ""
done
expect_error 2 '--passkey 2000000 is more than the model.s max_position_embeddings of 4096' "$BRAID" eval "$run" --passkey 2000000
expect_error 2 'eval: --passkey excludes --data|eval: --data excludes --passkey' "$BRAID" eval "$run" --passkey 100 --data "$WORK/text"
expect_error 2 'run is a run folder; its config is .*run/config.resolved.yaml' "$BRAID" config check "$run"
expect_error 2 'train.seq_length is 9223372036854775807, but must be within 2' "$BRAID" plan "$TINY" train.seq_length=9223372036854775807
expect_error 2 'train.micro_batch_size is 2000000000, but times train.seq_length 64' "$BRAID" plan "$TINY" train.{micro,global}_batch_size=2000000000
expect_error 2 'num_hidden_layers is 100000000, but must be at most 10000' "$BRAID" plan "$TINY" model.num_hidden_layers=100000000
for command in ls gc; do expect_error 4 'neither a run folder nor a folder of checkpoints' "$BRAID" ckpt $command "$WORK/text"; done
mkdir "$WORK/started" && touch "$WORK/started/LOCK"
"$BRAID" ckpt ls "$WORK/started" >/dev/null && "$BRAID" ckpt gc "$WORK/started" >/dev/null || fail "a run that has not saved yet is called none"
mkdir "$WORK/hf" && touch "$WORK/hf/config.json"
expect_error 4 'is a Hugging Face folder; init.from takes it as hf:.*, and `braid ckpt import --from' "$BRAID" eval "$WORK/hf"

# what is written where a user says: a device stays one (links to them here, so that a mistake costs no device)
for device in full null; do ln -s /dev/$device "$WORK/$device"; done
ln -s /proc/self/fd/1 "$WORK/stdout"
expect_error 9 'full: cannot be written: No space left on device' "$BRAID" report "$run" --out "$WORK/full"
expect_error 9 'full: cannot be written: No space left on device' "$BRAID" plot "$run" --svg "$WORK/full"
[ -L "$WORK/full" ] || fail "a device was replaced by a file"
"$BRAID" report "$run" --out "$WORK/stdout" --csv "$WORK/null" | grep -q '<!doctype html>' || fail "a report does not go through a pipe"
[ -L "$WORK/stdout" ] && [ -L "$WORK/null" ] || fail "a device was replaced by a file"
pass "devices and pipes are written as they are"

# closed streams: what is said goes into no file that is opened in their place
closed() { "$BRAID" train "$TINY" "run.dir=$WORK/closed" run.steps=1 eval.interval_steps=0; }
status=0; closed <&- 2>"$WORK/err" >&- || status=$?
[ "$status" = 9 ] && grep -q 'the run is complete, but of its output' "$WORK/err" || { cat "$WORK/err" >&2; fail "closed output ends with $status"; }
! grep -rqE 'resolved config|^step ' "$WORK/closed" || fail "what a closed output was told is in a file of the run"
[ ! -s "$WORK/closed/LOCK" ] || fail "the lock of the run holds text"
rm -r "$WORK/closed"; closed <&- >/dev/null 2>&- || fail "a run needs standard error"
pass "closed streams are no place for files"

# help on keys
"$BRAID" config explain optimizer.lr | grep -q 'peak learning rate' || fail "config explain does not explain"
expect_error 2 'did you mean lr' "$BRAID" config explain optimizer.lrr
expect_error 2 'here it is called run.steps' "$BRAID" config explain train_iters
[ "$("$BRAID" config diff "$WORK/quiet" "$WORK/json")" = "run.dir: $WORK/quiet -> $WORK/json" ] || fail "config diff of two runs"
[ "$("$BRAID" config diff "$TINY" "$TINY")" = "no key differs" ] || fail "config diff of a config with itself"
pass "config diff takes configs and run folders"

# ranks: what is asked for is not left out without a word
expect_error 2 'only one rank; was mpirun forgotten' "$BRAID" train "$TINY" "run.dir=$WORK/forgotten" parallel.expert=2
[ ! -e "$WORK/forgotten" ] || fail "a run that could not start left a folder"
model=$SOURCE/configs/models/qwen3-next-80b-a3b.yaml
one=$("$BRAID" plan "$model" --ranks 64 parallel.expert=64 | awk '/^  optimizer state/ { print $3 }')
few=$("$BRAID" plan "$model" --ranks 8 parallel.expert=8 | awk '/^  optimizer state/ { print $3 }')
awk "BEGIN { exit !($few > 4 * $one && $one > 0) }" || fail "plan of a model ignores --ranks: $one GiB on 64, $few GiB on 8"
pass "plan MODEL --ranks counts memory per rank"
"$BRAID" data inspect "$run/data" --json | grep -q '"tokens":' || fail "data inspect takes no folder"
pass "data inspect takes folders"

# curves of several runs
"$BRAID" plot "$run" "$WORK/quiet" --width 80 >"$WORK/out"
grep -q "$WORK/quiet" "$WORK/out" && grep -q "$run (last" "$WORK/out" && [ -s "$run/overlay.svg" ] || fail "plot does not lay runs over each other"
pass "plot lays runs over each other"
"$BRAID" watch "$run" >"$WORK/out"
grep -q 'step 8/8, finished' "$WORK/out" && grep -q '^layer_03 ' "$WORK/out" && grep -q '^mtp ' "$WORK/out" ||
  { cat "$WORK/out" >&2; fail "watch shows no curve or no expert loads"; }
pass "watch shows the curve and the experts"

# report
"$BRAID" report "$run" "$WORK/quiet" --out "$WORK/report.html" --csv "$WORK/report.csv" >/dev/null
grep -q 'resumed' "$WORK/report.html" && grep -q 'Experts\|Expert load' "$WORK/report.html" || fail "the report lacks events or loads"
[ "$(stat -c %s "$WORK/report.html")" -lt 2000000 ] || fail "the report has more than 2 MB"
! grep -qE '(src|href)="?(https?:)?//' "$WORK/report.html" || fail "the report asks for something from outside"
[ "$(wc -l <"$WORK/report.csv")" = 11 ] || fail "the CSV has not a row per step"
expect_error 9 'metrics.jsonl: is missing' "$BRAID" report "$WORK/absent" --out "$WORK/x.html"
pass "report"

# a study: killed in the middle, it goes on; then it is compared
cat >"$WORK/study.yaml" <<YAML
question: is more learning rate more?
config: tiny.yaml
set: [run.steps=5, eval.interval_steps=3, checkpoint.interval_steps=2, data.prefetch_steps=1]
seeds: [1, 2]
axes:
  - name: lr
    variants:
      - {name: low, set: [optimizer.lr=1e-4]}
      - {name: high, set: [optimizer.lr=1e-3]}
YAML
expect_error 2 'varies optimizer.lr' "$BRAID" ablate "$WORK/study.yaml" optimizer.lr=1 --dir "$WORK/study"
stopped_study() {  # DIR RUN OVERRIDE...: stopped when RUN has begun
  local dir=$1 run=$2 status=0 study
  shift 2
  "$BRAID" ablate "$WORK/study.yaml" "$@" --dir "$dir" >"$WORK/out" 2>&1 &
  study=$!
  for _ in $(seq 600); do grep -qs train/loss_lm "$dir/$run/metrics.jsonl" && break; sleep 0.05; done
  kill -TERM $study
  wait $study || status=$?
  [ "$status" = 75 ] || { cat "$WORK/out" >&2; fail "a stopped study ends with $status"; }
}
stopped_study "$WORK/study" lr-high/seed-1 run.steps=6
[ ! -e "$WORK/study/report.html" ] || fail "a stopped study has a report"
"$BRAID" ablate "$WORK/study.yaml" run.steps=6 --dir "$WORK/study" --jobs 2 >"$WORK/out" 2>&1 || { cat "$WORK/out" "$WORK"/study/*/*/console.log >&2; fail "the study does not go on"; }
grep -q 'lr=low seed 1: done before' "$WORK/out" || { cat "$WORK/out" >&2; fail "a finished run is run again"; }
grep -qE '^lr=high +2 ' "$WORK/out" || { cat "$WORK/out" >&2; fail "no result of the study"; }
[ -s "$WORK/study/report.html" ] && [ "$(wc -l <"$WORK/study/results.csv")" = 3 ] || fail "the study has no report"
inside="it holds 4 runs, one is $WORK/study/lr-high/seed-1, and $WORK/study/report.html compares them"
expect_error 9 "study: is no run, there is no metrics.jsonl; $inside" "$BRAID" report "$WORK/study" --out "$WORK/x.html"
expect_error 9 "study: is no run, there is no metrics.jsonl; $inside" "$BRAID" plot "$WORK/study"
expect_error 9 'lr-low: is no run, there is no metrics.jsonl; it holds 2 runs, one is [^,]*lr-low/seed-1$' "$BRAID" watch "$WORK/study/lr-low"
expect_error 4 "neither a checkpoint nor a run folder with one; $inside" "$BRAID" eval "$WORK/study"
expect_error 4 "neither a run folder nor a folder of checkpoints; $inside" "$BRAID" ckpt ls "$WORK/study"
expect_error 2 "study: is a folder without config.json.*, and without config.resolved.yaml, of a run; $inside" "$BRAID" config diff "$WORK/study" "$run"
same_numbers_of() { grep '"train/loss_lm"' "$1/metrics.jsonl" | sed -E 's/.*"train\/loss_lm": ([^,]*),.*/\1/'; }
"$BRAID" train "$TINY" "run.dir=$WORK/alone" run.steps=6 eval.interval_steps=3 data.prefetch_steps=1 optimizer.lr=1e-3 train.seed=1 --quiet
[ "$(same_numbers_of "$WORK/alone")" = "$(same_numbers_of "$WORK/study/lr-high/seed-1")" ] || fail "a run of a study is another than by itself"
stopped_study "$WORK/weights" lr-low/seed-1 run.steps=500 checkpoint.contents=weights  # such a run starts again
"$BRAID" ablate "$WORK/study.yaml" run.steps=2 checkpoint.contents=weights --dir "$WORK/weights" --jobs 2 >"$WORK/out" 2>&1 || { cat "$WORK/out" "$WORK"/weights/*/*/console.log >&2; fail "a study that saves weights alone does not go on"; }
echo other >"$WORK/study/lr-high/seed-2/data_order.txt"
expect_error 3 'same seed but did not see the same rows' "$BRAID" ablate "$WORK/study.yaml" run.steps=6 --dir "$WORK/study"
# what is there is not passed off as runs of a study that was changed since; where and how it computes is free
expect_error 2 'lr-low/seed-1: holds a run of another study: run.steps was 6 and is 5; choose another --dir' "$BRAID" ablate "$WORK/study.yaml" --dir "$WORK/study"
expect_error 2 'lr-low/seed-1: .*another study: optimizer.beta1 was 0.9 and is 0.8' \
  "$BRAID" ablate "$WORK/study.yaml" run.steps=6 optimizer.beta1=0.8 --dir "$WORK/study"
expect_error 3 'did not see the same rows' "$BRAID" ablate "$WORK/study.yaml" run.steps=6 checkpoint.keep=1 log.interval_steps=2 --dir "$WORK/study"
sed -i 's/optimizer.lr=1e-3/train.seed=5/' "$WORK/study.yaml"
expect_error 2 'cannot be compared' "$BRAID" ablate "$WORK/study.yaml" --dir "$WORK/study"
pass "ablate: stopped, gone on with, compared"

# one_node.sh: as many ranks as GPUs; two where there is none, with nvidia-smi that fails or that is not there
mkdir "$WORK/bin"
printf '#!/bin/sh\necho mpirun "$@"\n' >"$WORK/bin/mpirun"
gpus() { printf '#!/bin/sh\n%s\n' "$1" >"$WORK/bin/nvidia-smi"; chmod +x "$WORK"/bin/*; }
launched() { (unset RANKS; PATH=$WORK/bin:$PATH BRAID=$BRAID "$SOURCE/scripts/launch/one_node.sh" my.yaml) 2>&1 || echo "exit code $?"; }
while IFS='|' read -r ranks smi; do
  gpus "$smi"
  [ "$(launched)" = "mpirun -n $ranks $BRAID train my.yaml --resume=auto" ] || fail "one_node.sh where nvidia-smi does '$smi': $(launched)"
done <<'CASES'
3|for g in 0 1 2; do echo "GPU $g: a name (UUID: x)"; done
2|echo "NVIDIA-SMI has failed because it could not communicate with the driver"; exit 9
2|exit 127
CASES
pass "one_node.sh counts GPUs, and takes two ranks where there is none"

# doctor
"$BRAID" doctor --dir "$WORK" --json >"$WORK/out" || { cat "$WORK/out" >&2; fail "doctor finds a problem where there is none"; }
grep -q '"verdict": ' "$WORK/out" || fail "doctor --json is no JSON"
mpirun -n 2 "$BRAID" doctor --dir "$WORK" >"$WORK/out" || { cat "$WORK/out" >&2; fail "doctor finds a problem on two ranks"; }
grep -q '2 ranks on 1 host' "$WORK/out" && grep -q 'GB/s between ranks' "$WORK/out" || { cat "$WORK/out" >&2; fail "doctor does not look at ranks"; }
# N processes that each believe to be alone: the launcher's variables say 4, MPI says 1 (for one alone it asks for ssh, if only by name)
status=0; (unset ${!OMPI_@} ${!PMIX_@}; export OMPI_MCA_plm_rsh_agent=true; PMI_SIZE=4 PMI_RANK=0 "$BRAID" doctor --dir "$WORK") >"$WORK/out" 2>&1 || status=$?
[ "$status" = 10 ] && grep -q '^problem' "$WORK/out" && grep -q 'fix: ' "$WORK/out" || { cat "$WORK/out" >&2; fail "doctor does not see singletons"; }
status=0; (unset ${!OMPI_@} ${!PMIX_@}; export OMPI_MCA_plm_rsh_agent=true; WORLD_SIZE=8 "$BRAID" doctor --dir "$WORK") >"$WORK/out" 2>&1 || status=$?
[ "$status" = 10 ] && grep -q 'WORLD_SIZE is 8' "$WORK/out" || { cat "$WORK/out" >&2; fail "doctor does not see torchrun"; }
status=0; "$BRAID" doctor --dir /proc >"$WORK/out" 2>&1 || status=$?
[ "$status" = 10 ] && grep -q 'cannot be written' "$WORK/out" || { cat "$WORK/out" >&2; fail "doctor does not see a folder that cannot be written"; }
pass "doctor"
echo "$checks passed, 0 failed"
