#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/build_config.h"
#include "kernels/build_info.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/process_info.h"
#include "kernels/core/stream.h"
#include "parallel/mpi_session.h"
#include "parallel/rank_text.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

enum class Verdict { kOk, kWarning, kProblem };
constexpr const char* kVerdictNames[] = {"ok", "warning", "problem"};

struct Finding {
  std::string check;
  Verdict verdict = Verdict::kOk;
  std::string text, fix;
};

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string first_line_of(const std::string& command) {
  std::string line;
  if (std::FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
    char text[512];
    if (std::fgets(text, sizeof text, pipe)) line = text;
    pclose(pipe);
  }
  return line.substr(0, line.find('\n'));
}

// What a rank knows of itself, as the others get it.
Json this_rank(const std::string& dir_token) {
  const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string local = variable("OMPI_COMM_WORLD_LOCAL_RANK");
  if (local.empty()) local = variable("SLURM_LOCALID");
  return {{"host", host_name()},
          {"build", kBuildId},
          {"clock", now},
          {"cores", usable_cores()},
          {"gpus", Context::num_gpus()},
          {"visible", variable("CUDA_VISIBLE_DEVICES")},
          {"threads", variable("OMP_NUM_THREADS")},
          {"local_rank", local},
          {"token", dir_token}};
}

class Doctor {
 public:
  std::vector<Finding> findings;

  void add(const std::string& check, Verdict verdict, const std::string& text, const std::string& fix = "") {
    findings.push_back({check, verdict, text, fix});
  }
  void check_that(const std::string& check, bool ok, const std::string& good, const std::string& bad,
                  const std::string& fix, Verdict otherwise = Verdict::kProblem) {
    if (ok) add(check, Verdict::kOk, good);
    else add(check, otherwise, bad, fix);
  }

  // The launcher on the PATH and the library in the program; the library's own answer to how many ranks there are is
  // asked for by whoever opens the machine.
  void launcher() {
    const std::string library = MpiSession::library();
    const std::string launcher = first_line_of("mpirun --version");
    const bool open_mpi = library.starts_with("Open MPI");
    if (launcher.empty())
      add("launcher", Verdict::kWarning, concat("there is no mpirun on the PATH; the program holds ", library),
          open_mpi ? "install openmpi-bin, or start ranks with srun --mpi=pmix" : "install the launcher of that MPI");
    else
      check_that("launcher",
                 !open_mpi || launcher.find("Open MPI") != launcher.npos || launcher.find("PRTE") != launcher.npos,
                 concat(launcher, "; the program holds ", library),
                 concat("mpirun is of another MPI (", launcher, ") than the program (", library, ")"),
                 "put the mpirun of that MPI first on the PATH, or build again with this one");
  }

  void alone() {
    for (const char* name :
         {"WORLD_SIZE", "MPI_LOCALNRANKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}) {
      const std::string value = variable(name);
      if (std::atoi(value.c_str()) > 1)
        add("ranks", Verdict::kProblem,
            concat("one rank, although ", name, " is ", value, ": every process would train by itself"),
            "start with mpirun or srun of the MPI that braid was built with, not with torchrun");
    }
    if (findings.empty() || findings.back().check != "ranks")
      add("ranks", Verdict::kOk, "one rank, no launcher (mpirun -n W braid doctor looks at W ranks)");
  }

  void ranks(const std::vector<Json>& all) {
    std::map<std::string, std::vector<size_t>> hosts;
    for (size_t r = 0; r < all.size(); ++r) hosts[all[r]["host"]].push_back(r);
    std::string table;
    for (const auto& [host, members] : hosts)
      table += concat(table.empty() ? "" : "; ", host, ": ", members.size(), members.size() == 1 ? " rank" : " ranks",
                      ", ", int(all[members[0]]["cores"]), " cores, ", int(all[members[0]]["gpus"]), " GPUs");
    add("ranks", Verdict::kOk,
        concat(all.size(), " ranks on ", hosts.size(), hosts.size() == 1 ? " host (" : " hosts (", table, ")"));

    std::string builds, skewed;
    double first = 1e300, last = -1e300;
    for (const Json& rank : all)
      first = std::min(first, double(rank["clock"])), last = std::max(last, double(rank["clock"]));
    for (size_t r = 1; r < all.size(); ++r)
      if (all[r]["build"] != all[0]["build"])
        builds += concat(builds.empty() ? "" : "; ", "rank ", r, " on ", std::string(all[r]["host"]), " runs ",
                         std::string(all[r]["build"]));
    check_that("builds", builds.empty(), concat("every rank runs ", std::string(all[0]["build"])),
               concat("rank 0 runs ", std::string(all[0]["build"]), ", but ", builds),
               "install the same program on every host, or put it on a shared file system");
    check_that(
        "clocks", last - first < 1, concat("clocks differ by ", std::llround((last - first) * 1e3), " ms at most"),
        concat("clocks of hosts differ by ", std::llround(last - first), " s"),
        "let chrony or ntpd set the clocks: times in logs and files of several hosts will not fit", Verdict::kWarning);

    std::string shared_gpu, crowded, misplaced;
    for (const auto& [host, members] : hosts) {
      std::map<std::string, int> local_ranks;
      int threads = 0;
      for (const size_t r : members) {
        const std::string local = all[r]["local_rank"];
        if (!local.empty()) ++local_ranks[local];
        const int asked = std::atoi(std::string(all[r]["threads"]).c_str());
        threads += asked;
      }
      for (const auto& [local, count] : local_ranks)
        if (count > 1)
          misplaced += concat(misplaced.empty() ? "" : "; ", count, " ranks on ", host, " have local rank ", local);
      const int gpus = all[members[0]]["gpus"];
      const bool restricted =
          !std::string(all[members[0]]["visible"]).empty() && gpus == 1;  // by the launcher, rank by rank
      if (gpus > 0 && !restricted && members.size() > size_t(gpus))
        shared_gpu +=
            concat(shared_gpu.empty() ? "" : "; ", host, " has ", gpus, " GPUs for ", members.size(), " ranks");
      if (restricted && members.size() > 1) {
        std::map<std::string, int> users;
        for (const size_t r : members) ++users[all[r]["visible"]];
        for (const auto& [device, count] : users)
          if (count > 1)
            shared_gpu += concat(shared_gpu.empty() ? "" : "; ", count, " ranks on ", host, " see only GPU ", device);
      }
      const int cores = all[members[0]]["cores"];
      if (threads > 0 && threads > cores && cores * int(members.size()) > cores)
        crowded += concat(crowded.empty() ? "" : "; ", host, " has ", cores, " cores for ", threads,
                          " threads (OMP_NUM_THREADS)");
    }
    check_that("local ranks", misplaced.empty(), "every rank has a local rank of its own", misplaced,
               "hosts with the same name, or a launcher that sets no local ranks: give every host its own name");
    check_that("GPUs", shared_gpu.empty(),
               int(all[0]["gpus"]) > 0 ? "no GPU has two ranks" : "none in use: " + Context::why_no_gpu(), shared_gpu,
               "start one rank per GPU (mpirun --map-by ppr:GPUS:node), or name devices with CUDA_VISIBLE_DEVICES");
    check_that("threads", crowded.empty(), "threads fit the cores", crowded,
               "leave OMP_NUM_THREADS unset, or set it to cores / ranks of a host", Verdict::kWarning);
  }

  // Every pair of ranks, or every rank with the next one where there are many: one message of 4 MiB each way.
  void links(Context& ctx, Communicator& world, const std::vector<Json>& all) {
    const int size = world.size(), rank = world.rank();
    constexpr int64_t kRows = 1024, kWidth = 1024;
    constexpr int kAllPairs = 12;
    std::vector<float> out(kRows * kWidth, 1), in(kRows * kWidth);
    std::vector<double> speed(static_cast<size_t>(size) * size, 0);  // (from, to) GB/s as seen by the receiver
    for (int distance = 1; distance < (size <= kAllPairs ? size : 2); ++distance)
      for (int from = 0; from < size; ++from) {
        const int to = (from + distance) % size;
        std::vector<int64_t> send(static_cast<size_t>(size), 0), receive(static_cast<size_t>(size), 0);
        if (rank == from) send[to] = kRows;
        if (rank == to) receive[from] = kRows;
        const Tensor sent = Tensor::of(out.data(), {rank == from ? kRows : 0, kWidth});
        const Tensor received = Tensor::of(in.data(), {rank == to ? kRows : 0, kWidth});
        double best = 1e300;
        for (int round = 0; round < 3; ++round) {
          world.barrier(ctx);
          const auto start = Clock::now();
          world.all_to_all_rows(ctx, received, receive, sent, send);
          best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
        }
        if (rank == to) speed[size_t(from) * size + to] = double(kRows * kWidth * 4) / best / 1e9;
      }
    world.all_reduce(ctx, Tensor::of(speed.data(), {int64_t(speed.size())}), ReduceOp::kMax);
    std::vector<double> known;
    size_t slowest = 0;
    for (size_t i = 0; i < speed.size(); ++i) {
      if (speed[i] <= 0) continue;
      known.push_back(speed[i]);
      if (speed[slowest] <= 0 || speed[i] < speed[slowest]) slowest = i;
    }
    std::sort(known.begin(), known.end());
    const double median = known[known.size() / 2];
    const auto name = [&](size_t r) { return concat("rank ", r, " (", std::string(all[r]["host"]), ")"); };
    char text[256];
    std::snprintf(text, sizeof text, "%.2f GB/s between ranks in the median, slowest %.2f from %s to %s", median,
                  speed[slowest], name(slowest / size).c_str(), name(slowest % size).c_str());
    check_that("links", speed[slowest] * 4 >= median, text, text,
               "look at that link: another interface may be in use (OMPI_MCA_btl_tcp_if_include, NCCL_SOCKET_IFNAME)",
               Verdict::kWarning);
  }

  void folder(const std::string& dir, const std::vector<Json>& all) {
    std::string missing;
    for (size_t r = 1; r < all.size(); ++r)
      if (all[r]["token"] != all[0]["token"])
        missing += concat(missing.empty() ? "" : ", ", r, " (", std::string(all[r]["host"]), ")");
    check_that("run folder", missing.empty(),
               concat(dir, all.size() > 1 ? " is one folder for every rank, and can be written" : " can be written"),
               concat(dir, " is not the same folder on ranks ", missing, " as on rank 0"),
               "put run.dir on a file system that all hosts share");
    struct statvfs disk = {};
    if (statvfs(dir.c_str(), &disk) != 0) return;
    const double free_gb = double(disk.f_bavail) * double(disk.f_frsize) / 1e9;
    char text[64];
    std::snprintf(text, sizeof text, "%.1f GB free in %s", free_gb, dir.c_str());
    check_that("disk", free_gb > 5, text, text, "a checkpoint needs 12 bytes for each parameter", Verdict::kWarning);
  }

  void environment() {
    std::string nccl;
    for (char** entry = environ; *entry; ++entry) {
      const std::string text = *entry;
      if (text.starts_with("NCCL_")) nccl += (nccl.empty() ? "" : " ") + text;
    }
    if (!nccl.empty()) add("NCCL", Verdict::kOk, nccl);
    for (const char* name : {"NCCL_DEBUG", "CUDA_LAUNCH_BLOCKING", "NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"}) {
      const std::string value = variable(name);
      if (!value.empty() && value != "0" && value != "WARN" && value != "VERSION")
        add("environment", Verdict::kWarning, concat(name, "=", value, " slows training down"), concat("unset ", name));
    }
  }
};

// Rank 0's secret for the others to read; whether it could be written shows on rank 0.
std::string write_token(const std::string& dir) {
  const std::string token = concat(getpid(), "-", Clock::now().time_since_epoch().count());
  Loud<std::ofstream>(dir + "/.doctor-token") << token << std::flush;
  return token;
}
std::string read_token(const std::string& dir) {
  const std::string text = file_text(dir + "/.doctor-token");
  return text.substr(0, text.find('\n'));
}

int doctor(const std::string& dir, bool json) {
  Doctor d;
  d.launcher();
  std::unique_ptr<Machine> machine;
  try {
    RunConfig on_cpu;
    on_cpu.device = DeviceChoice::kCpu;
    machine = open_machine(on_cpu);
  } catch (const Error& e) {
    d.add("ranks", Verdict::kProblem, e.what(),
          "every process would train by itself: use the launcher of the MPI named here");
  }
  const bool first = (machine ? machine->world->rank() : world_rank()) == 0;
  if (machine) {
    Communicator& world = *machine->world;
    std::string token;
    if (first) token = write_token(dir);
    world.barrier(machine->ctx);
    token = read_token(dir);
    std::vector<Json> all;
    world.barrier(machine->ctx);  // clocks are read at one time
    for (const std::string& text : gather_text(machine->ctx, world, this_rank(token).dump()))
      all.push_back(Json::parse(text));
    if (first) std::remove((dir + "/.doctor-token").c_str());
    if (world.size() == 1) d.alone();
    if (world.size() > 1 || int(all[0]["gpus"]) > 0) d.ranks(all);
    if (first && token.empty())
      d.add("run folder", Verdict::kProblem, dir + " cannot be written",
            "choose another folder with --dir, or mend its permissions");
    else d.folder(dir, all);
    if (world.size() > 1) d.links(machine->ctx, world, all);
  }
  d.environment();

  const auto worst = std::max_element(d.findings.begin(), d.findings.end(), [](auto& a, auto& b) {
                       return a.verdict < b.verdict;
                     })->verdict;
  if (first && json) {
    Json out = {{"verdict", kVerdictNames[int(worst)]}, {"checks", Json::array()}};
    for (const Finding& f : d.findings)
      out["checks"].push_back(
          {{"check", f.check}, {"verdict", kVerdictNames[int(f.verdict)]}, {"text", f.text}, {"fix", f.fix}});
    print_json(out, 2);
  } else if (first) {
    for (const Finding& f : d.findings) {
      std::printf("%-8s %-12s %s\n", kVerdictNames[int(f.verdict)], f.check.c_str(), f.text.c_str());
      if (!f.fix.empty()) std::printf("%-21s fix: %s\n", "", f.fix.c_str());
    }
  }
  return worst == Verdict::kProblem ? static_cast<int>(ExitCode::kEnvironment) : 0;
}

}  // namespace

void add_doctor_command(Command app) {
  struct Options {
    std::string dir = ".";
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("doctor", "Look for what would spoil a run here; under mpirun, on all its ranks");
  command.option("--dir", options->dir, "folder that a run would write to").show_default();
  command.flag("--json", options->json, "print one JSON object");
  command.runs([options] { return doctor(options->dir, options->json); });
}

}  // namespace braid
