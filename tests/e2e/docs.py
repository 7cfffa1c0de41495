#!/usr/bin/env python3
"""Every command in the documentation is one.   docs.py BRAID_EXECUTABLE SOURCE_FOLDER

1. Whatever looks like a command, in a block, a table or a sentence of any README or of docs/, must parse: sub-commands,
   options and config keys exist, files of the repository are there, a config takes the overrides.
2. Every line of a shell block of README.md and docs/ is run as it stands, in its order, in a folder with the same
   configs, whose runs are cut to a few steps, and with what the text takes for granted (a run, a model of others). What
   needs a cluster, GPUs or hours is named below, with what is checked instead. docs/tutorial.md has a test of its own.
3. A link into a section leads to one (that files of links exist checks tests/structure/doc_files.cmake).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

BRAID, SOURCE = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()

# Lines that are not run, by how they begin: "script" has its syntax checked, "preset" its presets looked up; "parse" is
# what part 1 does. Whoever adds a line here says who runs it instead.
NOT_RUN = {
    "./scripts/quickstart.sh": "script",  # the continuous build runs both
    "./scripts/test.sh": "script",
    "cmake --preset": "preset",
    "kill -USR1": "parse",  # tests/e2e/stopping.sh
    "scripts/gpu_check.sh": "script",  # needs GPUs, as do the next
    "scripts/gpu_small_data.sh": "script",
    "build/release/braid train configs/runs/gpu-small.yaml": "parse",
    "mpirun -n 2 build/release/braid train configs/runs/gpu-small.yaml": "parse",
    "braid bench": "parse",  # tests/trainer/bench
    "mpirun -n 2 braid bench": "parse",
    "braid parity --model HF_DIR": "parse",  # every folder of tests/golden
    "scripts/launch/hostfile.sh": "script",  # needs a second host
    "BRAID=$PWD/build/release/braid sbatch": "script",  # needs Slurm
}

failures: list[str] = []
parsed = ran = followed = 0


def fail(where: str, command: str, why: str) -> None:
    failures.append(f"{where}: {command}\n    {why}")


def braid(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([BRAID, *arguments], cwd=SOURCE, capture_output=True, text=True)


# ----------------------------------------------------------------------------------------------------------------------
# What the documents hold


def split_document(path: Path) -> tuple[list[str], list[str]]:
    """The shell blocks, and the code spans of everything else."""
    text = path.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return blocks, [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands_of(block: str) -> list[str]:
    """Its lines, with a here-document or a line that goes on being one, without comments."""
    commands, lines = [], iter(block.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = line[:-1] + next(lines).strip()
        if end := re.search(r"<<'?(\w+)'?", line):
            for more in lines:
                line += "\n" + more
                if more == end[1]:
                    break
            commands.append(line)
        elif line := re.sub(r"(^|\s+)#.*", "", line).strip():
            commands.append(line)
    return commands


# ----------------------------------------------------------------------------------------------------------------------
# 1. They parse


@cache
def help_of(*names: str) -> str | None:
    result = braid(*names, "--help")
    return result.stdout if result.returncode == 0 else None


@cache
def is_key(key: str) -> bool:
    return braid("config", "explain", key).returncode == 0


@cache
def refusal(verb: str, config: str, *overrides: str) -> str:
    """Of a config whose data may be missing."""
    result = braid("config", verb, config, *overrides)
    why = result.stderr.strip() if result.returncode else ""
    return "" if why.endswith(": does not exist") or "data.sources is empty" in why else why


def words_of(command: str) -> list[str]:
    """Of a synopsis too: [--data FILE…] is two words, check\\|print one."""
    command = command.replace("\\|", "|").replace("…", " ")  # an override that loses its value so is a placeholder
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        words = command.split()
    return [word for word in words if word not in ("...", "[", "]")]


def check_braid(where: str, command: str, words: list[str]) -> None:
    names: list[str] = []
    while words and re.fullmatch(r"[a-z][a-z-]*(\|[a-z-]+)*", words[0]) and "Subcommands:" in (help_of(*names) or ""):
        for name in words[0].split("|"):
            if not re.search(rf"^  {name} ", help_of(*names), re.M):
                return fail(where, command, f"there is no `braid {' '.join([*names, name])}`")
        names.append(words.pop(0).split("|")[-1])
    text = help_of(*names)
    if text is None or (not names and not words[0].startswith("--")):  # options of the program itself stand alone
        return fail(where, command, f"there is no `braid {' '.join(names or words[:1])}`")
    configs, overrides = [], []
    for word in words:
        bare = word.strip("[](),")
        if bare.startswith("--"):
            for option in re.findall(r"--[a-z-]+", bare):
                if not re.search(rf"(^|[ ,]){option}\b(?!-)", text, re.M):
                    fail(where, command, f"`braid {' '.join(names)}` has no option {option}")
        elif match := re.fullmatch(r"([a-z_]+\.[a-z_]+)=(.*)", word):
            overrides.append(word)
            if not is_key(match[1]):
                fail(where, command, f"there is no config key {match[1]}")
        elif re.match(r"(configs|tests|docs|kernels)/", bare) and not re.search(r"[A-Z]{4}", bare):
            if not (SOURCE / bare).exists():
                fail(where, command, f"there is no {bare}")
            elif bare.startswith(("configs/runs", "configs/bench")):
                configs.append(bare)
    # The other overrides hold a placeholder.
    concrete = [o for o in overrides if o.startswith("run.dir=") or not re.search(r"=$|=.*\b[A-Z]+\b", o)]
    verb = "check" if names[:1] == ["train"] else "print"  # a config to measure is not one to train
    for config in configs:
        if why := refusal(verb, config, *concrete):
            fail(where, command, why)


def check_command(where: str, command: str) -> None:
    """Nothing if the text is not a command."""
    global parsed
    command = re.sub(r"^(\w+=\S+ )+", "", command)
    command = re.sub(r"^mpirun( -n \d+| --oversubscribe| --bind-to none| …)* (?=\S*braid )", "", command)
    command = re.sub(r"^scripts/supervise.sh ", "", command)
    command = re.sub(r"^mpirun( -n \d+)* (?=\S*braid )", "", command)
    words = words_of(command)
    if not words:
        return
    program = words[0]
    if program in ("braid", "build/release/braid") and len(words) > 1:
        check_braid(where, command, words[1:])
    elif re.match(r"(\./)?scripts/", program) or (program == "python" and len(words) > 1):
        script = SOURCE / (words[1] if program == "python" else program)
        if not script.is_file():
            return fail(where, command, f"there is no {script.relative_to(SOURCE)}")
        for option in re.findall(r"(?<=\s)--[a-z-]+", command):
            if option not in script.read_text():
                fail(where, command, f"{script.name} knows no {option}")
    elif program == "cmake":
        presets = json.loads((SOURCE / "CMakePresets.json").read_text())["configurePresets"]
        for name in re.findall(r"--preset (\S+)", command):
            if name not in [preset["name"] for preset in presets]:
                fail(where, command, f"there is no preset {name}")
    else:
        return
    parsed += 1


# ----------------------------------------------------------------------------------------------------------------------
# 2. They run


def make_folder(folder: Path) -> None:
    """What the commands find: the repository's configs, cut short, a model of others, a config of one's own, runs."""
    for name in ("scripts", "tests", "kernels", "docs"):
        (folder / name).symlink_to(SOURCE / name)
    shutil.copytree(SOURCE / "configs", folder / "configs")
    for config in folder.glob("configs/runs/*.yaml"):
        text = config.read_text()
        text = re.sub(r"^  steps: \d+", "  steps: 2", text, flags=re.M)
        text = re.sub(r"^  (warmup_steps|interval_steps): \d+", r"  \1: 1", text, flags=re.M)
        text = re.sub(r"^  micro_batch_size: \d+", "  micro_batch_size: 1", text, flags=re.M)
        text = re.sub(r"^  global_batch_size: \d+", "  global_batch_size: 2", text, flags=re.M)
        text = re.sub(r"^  sequences: \d+", "  sequences: 2", text, flags=re.M)
        text = re.sub(r"text: \[\.\./\.\./kernels, \.\./\.\./model\]", "text: [../../docs]", text)
        config.write_text(text)
    (folder / "build/release").mkdir(parents=True)
    (folder / "build/release/braid").symlink_to(BRAID)
    (folder / "my.yaml").write_text("base: configs/runs/tiny.yaml\nrun: {dir: runs/mine}\ndevice: cpu\n")
    for name in "abc":
        run_line("a run", f"braid train configs/runs/tiny.yaml run.dir=runs/{name}", folder)
    run_line("a model of others", "braid ckpt export --from runs/a --to Qwen3-Next-80B-A3B-Base", folder)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{folder}/build/release:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }


def run_line(where: str, command: str, folder: Path) -> None:
    global ran
    shell = ["bash", "-euo", "pipefail", "-c", command]
    result = subprocess.run(
        shell, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", timeout=120,
    )
    ran += 1
    if result.returncode:
        fail(where, command, f"exit code {result.returncode}: " + "\n    ".join(result.stdout.splitlines()[-8:]))


def run_command(where: str, command: str, folder: Path) -> None:
    how = [how for begin, how in NOT_RUN.items() if command == begin or command.startswith(begin + " ")]
    if not how:
        return run_line(where, command, folder)
    if "script" in how:
        script = next(word for word in command.split() if word.startswith(("scripts/", "./scripts/")))
        if subprocess.run(["bash", "-n", script], cwd=SOURCE).returncode or not os.access(SOURCE / script, os.X_OK):
            fail(where, command, f"{script} is no program that bash reads")


# ----------------------------------------------------------------------------------------------------------------------
# 3. Links into sections


@cache
def sections_of(path: Path) -> set[str]:
    """As GitHub names them: lower case, without punctuation, words joined by dashes."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def check_links(path: Path) -> None:
    global followed
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for file, section in re.findall(r"\]\((?!\w+:)([^)#\s]*)#([^)\s]+)\)", text):
        target = (path.parent / file).resolve() if file else path
        if not target.is_file() or section not in sections_of(target):
            fail(str(path.relative_to(SOURCE)), f"{file}#{section}", "there is no such section")
        followed += 1


def main() -> None:
    documents = [SOURCE / "README.md", *sorted((SOURCE / "docs").glob("*.md"))]
    folders = ("configs", "kernels", "parallel", "data", "model", "trainer", "tests/golden")
    for path in documents + [SOURCE / folder / "README.md" for folder in folders]:
        check_links(path)
        blocks, spans = split_document(path)
        for command in [c for block in blocks for c in commands_of(block)] + spans:
            check_command(str(path.relative_to(SOURCE)), command)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder)
        for path in documents:
            if path.name == "tutorial.md":
                continue
            for block in split_document(path)[0]:
                for run in ("laptop", "mine"):  # a block begins its own
                    shutil.rmtree(folder / "runs" / run, ignore_errors=True)
                for command in commands_of(block):
                    run_command(str(path.relative_to(SOURCE)), command, folder)
    for text in failures:
        print("FAILED:", text, file=sys.stderr)
    print(f"{parsed} commands of the documentation parse, {ran} lines ran, {followed} links into sections, {len(failures)} failures")
    if failures or parsed < 100 or ran < 25 or followed < 10:
        sys.exit(1)


main()
