"""What the chaos tests share: trainings of a tiny model on two ranks, how they end, and what they must leave behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time


class Failure(Exception):
    pass


def check(condition, *what):
    if not condition:
        raise Failure(" ".join(str(w) for w in what))


def write_text(folder, source, lines_wanted):
    """Text that never changes: lines of LICENSE in an order of their own."""
    with open(os.path.join(source, "LICENSE"), encoding="utf-8") as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    os.makedirs(folder, exist_ok=True)
    x = 1
    with open(os.path.join(folder, "text.txt"), "w", encoding="utf-8") as file:
        for _ in range(lines_wanted):
            x = (x * 69069 + 12345) % 2**32
            file.write(lines[x // 65536 % len(lines)] + "\n")


class Job:
    """One `mpirun -n 2 braid train …`, or `braid train …` for one rank, in a process group of its own."""

    def __init__(self, world, run_dir, arguments=(), env=(), file_bytes=None):
        self.log_path = run_dir + ".log"
        command = [
            *(["mpirun", "-n", str(world.ranks)] if world.ranks > 1 else []),
            world.braid,
            "train",
            world.config,
            "run.dir=" + run_dir,
            *world.arguments,
            *arguments,
        ]
        if file_bytes:  # of the ranks: the launcher needs files of its own, and so does the memory that Open MPI 5 shares
            env = dict(env, OMPI_MCA_btl="self,tcp", OMPI_MCA_btl_tcp_if_include="lo")
            place = command.index(world.braid)
            command[place:place] = ["bash", "-c", f'ulimit -f {file_bytes // 1024}; exec "$@"', "limited"]
        self.begin = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(world.env, **dict(env)),
                start_new_session=True,
            )

    def pids(self):
        """By rank, of those that run the program."""
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
                if parent != self.process.pid:
                    continue
                with open(f"/proc/{entry}/environ", "rb") as file:
                    variables = file.read().split(b"\0")
            except (OSError, IndexError, ValueError):
                continue
            for variable in variables:
                if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                    found[int(variable.split(b"=")[1])] = int(entry)
        return found

    def send(self, rank, number):
        """False if the rank is not there, or no more."""
        pid = self.pids().get(rank)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait(self, seconds):
        """The exit code. A job that is still there then is a failure."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Failure(f"the job is still there after {seconds} s") from None

    def kill_all(self):
        for pid in [*self.pids().values(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


# A model and steps that take hundredths of a second; what starts, saves and loads is the same.
SMALLEST = [
    "model.num_hidden_layers=2",
    "model.full_attention_interval=2",
    "model.hidden_size=32",
    "model.num_experts=4",
    "train.global_batch_size=2",
    "train.seq_length=32",
]


class World:
    def __init__(self, braid, source, work, ranks=2, steps=24, interval=3, arguments=(), lines=6000):
        self.braid, self.ranks, self.steps, self.work = braid, ranks, steps, work
        write_text(os.path.join(work, "text"), source, lines)
        self.config = os.path.join(work, "chaos.yaml")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(
                f"base: {source}/configs/runs/tiny.yaml\noptimizer: {{lr: 1e-3}}\n"
                f"data:\n  sources: [{{name: fixed, text: [{work}/text]}}]\n"
            )
        self.arguments = [
            f"run.steps={steps}",
            f"checkpoint.interval_steps={interval}",
            "eval.interval_steps=8",
            "eval.sequences=4",
            "run.hang_timeout=5",
            "precision=fp32",
            f"parallel.expert={ranks}",
            *arguments,
        ]
        self.env = dict(
            os.environ,
            OMP_NUM_THREADS="1",
            OMPI_ALLOW_RUN_AS_ROOT="1",
            OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            OMPI_MCA_rmaps_base_oversubscribe="1",
            OMPI_MCA_hwloc_base_binding_policy="none",
            OMPI_MCA_mpi_yield_when_idle="1",
            OMPI_MCA_btl_base_warn_component_unused="0",
            CUDA_VISIBLE_DEVICES="",
        )
        for name in ("BRAID_FAULT", "BRAID_CALLS", "LD_PRELOAD"):
            self.env.pop(name, None)

    def tool(self, *arguments):
        done = subprocess.run([self.braid, *arguments], env=self.env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def golden(self):
        """The run that nothing happens to, and how long it took."""
        path = os.path.join(self.work, "golden")
        job = Job(self, path)
        check(job.wait(300) == 0, "the golden run failed:", job.log()[-2000:])
        return path, time.monotonic() - job.begin

    def check_committed(self, run_dir):
        """Every committed checkpoint is whole. Returns how many there are."""
        paths = checkpoints(run_dir)
        for path in paths:
            code, said = self.tool("ckpt", "verify", path)
            check(code == 0, "a committed checkpoint is damaged:", said)
        return len(paths)

    def check_end(self, golden, run_dir):
        """A complete run is the golden one: same state, and every step, so every sample, once and with the same numbers."""
        check(steps_of(run_dir) == steps_of(golden), "the metrics are not those of the golden run")
        check([s["step"] for s in steps_of(run_dir)] == list(range(1, self.steps + 1)), "not every step once")
        code, said = self.tool("ckpt", "diff", golden, run_dir)
        check(code == 0, "the final state is not the golden one:", said)


def checkpoints(run_dir):
    folder = os.path.join(run_dir, "checkpoints")
    names = (
        sorted(name for name in os.listdir(folder) if re.fullmatch(r"step-\d{9}", name))
        if os.path.isdir(folder)
        else []
    )
    return [os.path.join(folder, name) for name in names]


def steps_of(run_dir):
    """The training lines without what depends on the clock."""
    lines = []
    with open(os.path.join(run_dir, "metrics.jsonl"), encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "train/loss_lm" in line:
                lines.append({key: value for key, value in line.items() if not key.startswith("perf/")})
    return lines


def said_by_braid(log):
    return [line for line in log.split("\n") if line.startswith("braid: ")]


def is_defect(log):
    return (
        re.search(
            r"internal error|terminate called|Segmentation fault|AddressSanitizer|ThreadSanitizer|runtime error:", log
        )
        is not None
    )


def add_common_arguments(parser, seed=True):
    parser.add_argument("braid", type=os.path.abspath)
    parser.add_argument("source", type=os.path.abspath)
    if seed:
        parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", help="stays; a temporary folder if not given")


@contextlib.contextmanager
def work_folder(options):
    """A temporary one is removed, unless something failed: then it stays to be looked at."""
    work = options.work or tempfile.mkdtemp(prefix="braid-chaos-")
    os.makedirs(work, exist_ok=True)
    yield work
    if not options.work:
        shutil.rmtree(work)


def run_main(main):
    try:
        main()
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr, flush=True)
        sys.exit(1)
