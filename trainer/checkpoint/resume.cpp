#include "trainer/checkpoint/resume.h"

#include <filesystem>
#include <optional>
#include <sstream>

#include "kernels/core/stream.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint_folder.h"

namespace braid {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  Loud<std::istringstream> in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Paths, best first, of rank 0.
std::vector<std::string> candidates_of(Context& ctx, Communicator& world, const ResumeChoice& choice) {
  return lines_of(from_first_rank(ctx, world, [&] {
    if (!choice.checkpoint.empty()) {
      const std::string within = choice.checkpoint + "/checkpoints";
      std::error_code ignored;
      if (!std::filesystem::is_directory(within, ignored)) return choice.checkpoint;
      const std::vector<CheckpointEntry> entries = branch_checkpoints(within);
      throw ConfigError(concat(choice.checkpoint, ": is a run folder, expected one of its checkpoints, ",
                               entries.empty() ? "of which there is none" : "such as " + entries.front().path));
    }
    std::string lines;
    const std::vector<CheckpointEntry> entries = branch_checkpoints(choice.folder);  // newest first
    for (size_t i = 0; i < entries.size(); ++i)
      if (entries[i].step <= choice.up_to_step || i + 1 == entries.size()) lines += entries[i].path + "\n";
    check<CheckpointError>(!lines.empty(), choice.folder, ": no checkpoint to resume from");
    return lines;
  }));
}

// What is wrong with a checkpoint; empty if nothing.
template <class Body>
std::string damage(Body&& body) {
  try {
    body();
  } catch (const CheckpointError& e) {
    return e.what();
  }
  return "";
}

}  // namespace

Resumed resume_from(Context& ctx, Communicator& world, const ResumeChoice& choice,
                    const std::function<void(const CheckpointReader&)>& accept,
                    const std::function<void(const CheckpointReader&)>& load) {
  Resumed resumed;
  std::vector<std::string> damaged;
  std::string first_problem;
  for (const std::string& path : candidates_of(ctx, world, choice)) {
    std::optional<CheckpointReader> reader;
    std::string problem = damage([&] { reader.emplace(ctx, world, path); });
    if (problem.empty()) {
      all_or_none(ctx, world, [&] { return accept(*reader), std::string(); });
      problem = damage([&] { load(*reader); });
    }
    if (problem.empty()) {
      resumed.path = path;
      resumed.info = reader->info();
      break;
    }
    check<CheckpointError>(!choice.strict && choice.checkpoint.empty(), problem);
    resumed.damaged.push_back("the checkpoint " + path + " is damaged and passed over: " + problem);
    damaged.push_back(path);
    if (first_problem.empty()) first_problem = problem;
  }
  check<CheckpointError>(!resumed.path.empty(), choice.folder, ": none of its ", damaged.size(),
                         " checkpoints can be used, the newest because of ", first_problem);
  const std::string names = from_first_rank(ctx, world, [&] {
    std::string lines;
    for (const std::string& name : set_others_aside(choice.folder, resumed.path, damaged)) lines += name + "\n";
    return lines;
  });
  for (const std::string& name : lines_of(names))
    resumed.set_aside.push_back("set aside as " + name + ", as the run goes on from " + resumed.path +
                                "; remove it with braid ckpt gc");
  return resumed;
}

}  // namespace braid
