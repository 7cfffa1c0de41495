#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/core/durable_file.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/checkpoint_scan.h"
#include "trainer/checkpoint/reshard.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/huggingface/export.h"
#include "trainer/huggingface/import.h"
#include "trainer/metrics/progress_bar.h"
#include "trainer/metrics/run_search.h"
#include "trainer/run/run_folder.h"
#include "trainer/run_tokenizer.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr size_t kShownDifferences = 20;

int inspect(const std::string& path) {
  const CheckpointReader reader = open_checkpoint(path);
  const CheckpointInfo& info = reader.info();
  int64_t bytes = 0;
  for (const auto& t : reader.tensors()) bytes += t.shape.numel() * size_of(t.dtype);
  print_line(reader.path());
  print_line("step ", info.step, ", ", info.tokens, " tokens");
  print_line("written by ", info.num_ranks, " ranks, expert parallel ", info.expert_parallel, ", braid ",
             info.build_id);
  print_line(reader.tensors().size(), " tensors, ", bytes, " bytes",
             reader.holds_weights_alone() ? ", weights alone" : "");
  return 0;
}

using Json = nlohmann::json;

int64_t bytes_in(const fs::path& folder) {
  int64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file(error)) bytes += static_cast<int64_t>(it->file_size(error));
  return bytes;
}

std::string checkpoints_in(const std::string& path) {
  const fs::path in_run = fs::path(path) / "checkpoints";
  std::error_code ignored;
  check<CheckpointError>(fs::is_directory(path, ignored), path, ": there is no folder of this name");
  if (fs::is_directory(in_run, ignored)) return in_run.string();
  const bool is_run = fs::exists(fs::path(path) / "LOCK", ignored);  // that has not saved yet
  if (!is_run && list_checkpoints(path).empty() && set_aside_in(path).empty())
    throw CheckpointError(concat(path, ": neither a run folder nor a folder of checkpoints", runs_inside(path)));
  return path;
}

// Every checkpoint of a run, and what lies beside them. One that is damaged, or that this user may not read, is a line
// like the others.
int list(const std::string& path, bool as_json) {
  const std::string folder = checkpoints_in(path);
  const auto branch = branch_checkpoints(folder);
  Json rows = Json::array();
  for (const CheckpointEntry& entry : list_checkpoints(folder)) {
    const bool on_branch =
        std::any_of(branch.begin(), branch.end(), [&](const auto& e) { return e.path == entry.path; });
    Json row = {
        {"name", fs::path(entry.path).filename().string()}, {"step", entry.step}, {"bytes", bytes_in(entry.path)}};
    row["state"] = !on_branch ? "abandoned" : entry.path == branch[0].path ? "newest" : "";
    try {
      const CheckpointReader reader(entry.path);
      const CheckpointInfo& info = reader.info();
      row["tokens"] = info.tokens;
      row["ranks"] = info.num_ranks;
      row["expert_parallel"] = info.expert_parallel;
      row["build"] = info.build_id;
      row["contents"] = reader.holds_weights_alone() ? "weights" : "all";
    } catch (const CheckpointError& e) {
      row["state"] = "damaged";
      row["problem"] = e.what();
    } catch (const IoError& e) {
      row["state"] = "unreadable";
      row["problem"] = e.what();
    }
    rows.push_back(std::move(row));
  }
  for (const std::string& left : set_aside_in(folder))
    rows.push_back({{"name", fs::path(left).filename().string()}, {"bytes", bytes_in(left)}, {"state", "for gc"}});
  if (as_json) return print_json(Json{{"folder", folder}, {"checkpoints", rows}}), 0;
  std::printf("%-32s %14s %16s %9s  %s\n", "checkpoint", "bytes", "tokens", "ranks", "state");
  for (const Json& row : rows) {
    const std::string tokens = row.contains("tokens") ? row["tokens"].dump() : "-";
    const std::string ranks =
        row.contains("ranks") ? concat(row["ranks"].get<int64_t>(), "/", row["expert_parallel"].get<int64_t>()) : "-";
    std::string state = row.value("problem", row["state"].get<std::string>());
    if (row.value("contents", "") == "weights") state += state.empty() ? "weights alone" : ", weights alone";
    std::printf("%-32s %14lld %16s %9s  %s\n", row["name"].get<std::string>().c_str(),
                static_cast<long long>(row["bytes"].get<int64_t>()), tokens.c_str(), ranks.c_str(), state.c_str());
  }
  return 0;
}

int verify(const std::string& path, bool deep, bool as_json) {
  const CheckpointReader reader = open_checkpoint(path);
  const ReadingBar bar("checked: ", bytes_in(reader.path()));
  Json norms = Json::object();
  if (deep) {
    for (const TensorNorm& norm : check_finite(reader)) norms[norm.name] = norm.rms;
  } else {
    reader.verify();
  }
  if (as_json) {
    Json json = {{"checkpoint", reader.path()},
                 {"step", reader.info().step},
                 {"tensors", reader.tensors().size()},
                 {"bytes_read", reader.bytes_read()},
                 {"ok", true}};
    if (deep) json["rms"] = std::move(norms);
    return print_json(json), 0;
  }
  for (const auto& [name, rms] : norms.items()) std::printf("%-80s rms %.6g\n", name.c_str(), rms.get<double>());
  print_line(reader.path(), ": ", reader.tensors().size(), " tensors, every digest matches",
             deep ? ", every number is finite" : "");
  return 0;
}

int diff(const std::string& path_a, const std::string& path_b, double rtol, bool as_json) {
  const CheckpointReader a = open_checkpoint(path_a), b = open_checkpoint(path_b);
  const auto differences = compare_checkpoints(a, b);
  double largest = 0;
  size_t beyond = 0;
  Json listed = Json::array();
  for (const TensorDifference& d : differences) {
    largest = std::max(largest, d.relative_rms);
    if (rtol > 0 && d.relative_rms <= rtol) continue;
    ++beyond;
    if (as_json) listed.push_back({{"tensor", d.name}, {"what", d.what}, {"first_element", d.first}});
    else if (beyond <= kShownDifferences) print_line(d.name + ": " + d.what);
  }
  if (as_json) {
    print_json(Json{{"tensors", {a.tensors().size(), b.tensors().size()}},
                    {"not_bit_equal", differences.size()},
                    {"largest_relative_rms", largest},
                    {"beyond", beyond},
                    {"differences", std::move(listed)}});
  } else {
    std::printf("%zu and %zu tensors, %zu not bit-equal, largest relative RMS difference %.3g, %zu beyond the bound\n",
                a.tensors().size(), b.tensors().size(), differences.size(), largest, beyond);
  }
  return beyond == 0 ? 0 : 1;
}

int reshard(const std::string& from, const std::string& to, int64_t ranks, bool as_json) {
  const CheckpointReader source = open_checkpoint(from);
  {
    const ReadingBar bar("read: ", bytes_in(source.path()));
    reshard_checkpoint(source, to, ranks);
  }
  if (as_json)
    return print_json(Json{{"from", source.path()}, {"to", to}, {"ranks", ranks}, {"bytes_read", source.bytes_read()}}),
           0;
  print_line(to, ": the state of ", source.path(), " in ", ranks, " files");
  return 0;
}

// Under the lock of the run, so never beside a training.
int collect_garbage(const std::string& path, int64_t keep, bool dry_run, bool as_json) {
  const std::string folder = checkpoints_in(path);
  std::optional<RunFolder> lock;
  const bool is_run = folder != path || fs::exists(fs::path(path) / "LOCK");
  const fs::path run = is_run ? fs::path(path) : fs::canonical(folder).parent_path();
  if (is_run || fs::exists(run / "LOCK")) lock.emplace(run.string());
  const auto branch = branch_checkpoints(folder);
  std::vector<std::string> garbage = set_aside_in(folder);
  for (const CheckpointEntry& entry : list_checkpoints(folder)) {
    const auto at = std::find_if(branch.begin(), branch.end(), [&](const auto& e) { return e.path == entry.path; });
    if (at == branch.end() || (keep > 0 && at - branch.begin() >= keep)) garbage.push_back(entry.path);
  }
  int64_t bytes = 0;
  for (const std::string& name : garbage) bytes += bytes_in(name);
  if (!dry_run)
    for (const std::string& name : garbage) remove_checkpoint(name);
  if (as_json) return print_json(Json{{"removed", garbage}, {"bytes", bytes}, {"dry_run", dry_run}}), 0;
  for (const std::string& name : garbage) print_line(dry_run ? "would remove " : "removed ", name);
  print_line(garbage.size(), " entries, ", bytes, " bytes");
  return 0;
}

// The bound of import and export, said before they start; how fast they were, once they are done.
void convert_model(const std::function<void()>& body) {
  print_line("memory bound: ", kConversionMemoryBytes >> 20, " MiB");
  const auto start = std::chrono::steady_clock::now();
  body();
  std::printf("done in %.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

int import_from(const std::string& from, const std::string& to, NonFinite non_finite) {
  convert_model([&] {
    const HuggingFaceReader source(from, non_finite);
    print_line(from, ": ", source.parameters().size(), " parameters, ", source.has_mtp() ? "with" : "without",
               " an MTP block, ", source.total_bytes(), " bytes");
    {
      const ReadingBar bar("read: ", source.total_bytes());
      import_model(source, to);
    }
    print_line(to + ": a checkpoint with these weights; train from it with init.from");
  });
  return 0;
}

int64_t weight_bytes(const CheckpointReader& source) {
  int64_t bytes = 0;
  for (const auto& t : source.tensors())
    if (t.name.starts_with("weights/")) bytes += t.shape.numel() * size_of(t.dtype);
  return bytes;
}

int export_to(const std::string& from, const std::string& to, const std::string& dtype) {
  convert_model([&] {
    const CheckpointReader source = open_checkpoint(from);
    std::optional<DType> wanted;
    if (!dtype.empty()) wanted = dtype == "bf16" ? DType::kBF16 : DType::kF32;
    const auto tokenizer = run_tokenizer(source.path());
    {
      const ReadingBar bar("read: ", weight_bytes(source));
      export_model(source, to, wanted);
    }
    if (!tokenizer->file().empty()) write_file_atomically(to + "/tokenizer.json", tokenizer->file());
    print_line(to, ": the weights of ", source.path(), " as a Hugging Face folder");
  });
  return 0;
}

}  // namespace

void add_ckpt_command(Command app) {
  struct Options {
    std::string a, b, dtype;
    double rtol = 0;
    int64_t ranks = 1, keep = 0;
    bool allow_nonfinite = false, deep = false, dry_run = false, json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command =
      app.command("ckpt", "Show, check, compare, cut anew, clear away, import and export checkpoints").needs_command();
  const std::string what = "checkpoint folder, or run folder (its newest checkpoint)";

  const Command inspect_command = command.command("inspect", "Step, layout, size and build of a checkpoint");
  inspect_command.option("checkpoint", options->a, what).required();
  inspect_command.runs([options] { return inspect(options->a); });

  const auto with_json = [&](const Command& sub) { sub.flag("--json", options->json, "print one JSON object"); };
  const Command list_command = command.command("ls", "Every checkpoint of a run and what lies beside them");
  list_command.option("run", options->a, "run folder, or its folder of checkpoints").required();
  with_json(list_command);
  list_command.runs([options] { return list(options->a, options->json); });

  const Command verify_command = command.command("verify", "Read every byte and check every digest");
  verify_command.option("checkpoint", options->a, what).required();
  verify_command.flag("--deep", options->deep, "also that every number is finite; prints the RMS of every tensor");
  with_json(verify_command);
  verify_command.runs([options] { return verify(options->a, options->deep, options->json); });

  const Command diff_command =
      command.command("diff", "Compare two checkpoints tensor by tensor; exit 1 if they differ");
  diff_command.option("a", options->a, what).required();
  diff_command.option("b", options->b, what).required();
  diff_command.option("--rtol", options->rtol, "relative RMS difference allowed per tensor; 0 = the same bits")
      .number(0, 1e6);
  with_json(diff_command);
  diff_command.runs([options] { return diff(options->a, options->b, options->rtol, options->json); });

  const Command reshard_command =
      command.command("reshard", "Write a checkpoint again, in equal files as of another number of ranks");
  reshard_command.option("--from", options->a, what).required();
  reshard_command.option("--to", options->b, "checkpoint folder to make; may not hold anything yet").required();
  reshard_command.option("--ranks", options->ranks, "files to make").required().whole(1, 65536);
  with_json(reshard_command);
  reshard_command.runs([options] { return reshard(options->a, options->b, options->ranks, options->json); });

  const Command gc_command = command.command(
      "gc", "Remove what no run goes on from: left-overs, damaged and abandoned checkpoints, with --keep old ones");
  gc_command.option("run", options->a, "run folder, or its folder of checkpoints").required();
  gc_command.option("--keep", options->keep, "newest checkpoints that stay; 0 = all").whole(0);
  gc_command.flag("--dry-run", options->dry_run, "remove nothing, tell what would be");
  with_json(gc_command);
  gc_command.runs([options] { return collect_garbage(options->a, options->keep, options->dry_run, options->json); });

  const Command import_command = command.command(
      "import", "Make a checkpoint from a Hugging Face folder: its weights alone, to train from (init.from) or use");
  import_command.option("--from", options->a, "folder with config.json and safetensors files").required();
  import_command.option("--to", options->b, "checkpoint folder to make; may not hold anything yet").required();
  import_command.flag("--allow-nonfinite", options->allow_nonfinite, "take weights that are NaN or infinite");
  import_command.runs([options] {
    return import_from(options->a, options->b, options->allow_nonfinite ? NonFinite::kAllow : NonFinite::kRefuse);
  });

  const Command export_command = command.command("export", "Write a checkpoint's weights as a Hugging Face folder");
  export_command.option("--from", options->a, what).required();
  export_command.option("--to", options->b, "folder to make; may not hold anything yet").required();
  export_command.option("--dtype", options->dtype, "of all tensors; without it, each as the checkpoint has it")
      .one_of({"bf16", "fp32"});
  export_command.runs([options] { return export_to(options->a, options->b, options->dtype); });
}

}  // namespace braid
