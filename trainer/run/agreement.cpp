#include "trainer/run/agreement.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>

#include "kernels/build_info.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/process_info.h"
#include "kernels/core/sha256.h"
#include "kernels/core/stored_file.h"
#include "parallel/rank_text.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// Not those that may differ between hosts for good reasons: network interfaces, logging, topology.
constexpr const char* kVariables[] = {"NCCL_ALGO",
                                      "NCCL_PROTO",
                                      "NCCL_NVLS_ENABLE",
                                      "NCCL_MIN_NCHANNELS",
                                      "NCCL_MAX_NCHANNELS",
                                      "NCCL_NTHREADS",
                                      "NCCL_BUFFSIZE",
                                      "NVIDIA_TF32_OVERRIDE",
                                      "DNNL_MAX_CPU_ISA",
                                      "ONEDNN_MAX_CPU_ISA",
                                      "CUBLAS_WORKSPACE_CONFIG",
                                      "CUDA_DEVICE_MAX_CONNECTIONS",
                                      "OPENBLAS_CORETYPE",
                                      "DNNL_DEFAULT_FPMATH_MODE",
                                      "ONEDNN_DEFAULT_FPMATH_MODE"};

// "rank 0 (host a)"
std::string where(const std::vector<int>& ranks, const std::vector<std::string>& hosts) {
  std::vector<std::string> names;
  for (const int rank : ranks)
    if (std::find(names.begin(), names.end(), hosts[rank]) == names.end()) names.push_back(hosts[rank]);
  return concat(rank_list(ranks), " (", names.front(), names.size() > 1 ? ", …" : "", ")");
}

// Values of all ranks -> those that differ from rank 0 in the way the first of them does.
std::vector<int> ranks_that_differ(const std::vector<std::string>& values) {
  std::vector<int> ranks;
  const auto first = std::find_if(values.begin(), values.end(), [&](const auto& v) { return v != values[0]; });
  for (size_t rank = 0; rank < values.size() && first != values.end(); ++rank)
    if (values[rank] == *first) ranks.push_back(static_cast<int>(rank));
  return ranks;
}

// The same on every rank.
[[noreturn]] void refuse(Context& ctx, Communicator& world, const std::string& name, const std::string& value,
                         const std::string& other, const std::vector<int>& ranks) {
  const auto hosts = gather_text(ctx, world, host_name());
  throw_on_every_rank(
      ConfigError(concat("the ranks do not agree: ", name, " is ", value, " on ", where({0}, hosts), " and ", other,
                         " on ", where(ranks, hosts), "; start every rank with the same program, config and files")));
}

std::string text_of(const std::vector<Fact>& facts) {
  std::string text;
  for (const Fact& fact : facts) text += fact.name + '\0' + fact.value + '\0';
  return text;
}

std::string value_in(const std::string& text, const std::string& name) {
  for (size_t at = 0; at < text.size();) {
    const size_t name_end = text.find('\0', at), value_end = text.find('\0', name_end + 1);
    if (name_end == text.npos || value_end == text.npos) break;
    if (text.compare(at, name_end - at, name) == 0) return text.substr(name_end + 1, value_end - name_end - 1);
    at = value_end + 1;
  }
  return "(absent)";
}

std::string random_token() {
  std::random_device device;
  return sha256(concat(device(), ' ', device(), ' ', device(), ' ', device())).substr(0, 32);
}

// What a small file holds; "" if it is not there or not readable.
std::string content_of(const fs::path& path) {
  try {
    const StoredFile file(path.string(), Links::kRefuse);
    std::string text(std::min<int64_t>(file.size(), 64), '\0');
    file.read(text.data(), static_cast<int64_t>(text.size()), 0);
    return text;
  } catch (const Error&) {
    return "";
  }
}

// Network file systems may take a moment to show a new file.
bool shows_up(const fs::path& path, const std::string& content) {
  constexpr auto kPatience = std::chrono::seconds(5);
  for (const auto start = std::chrono::steady_clock::now(); content_of(path) != content;) {
    if (std::chrono::steady_clock::now() - start > kPatience) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

}  // namespace

void check_agreement(Context& ctx, Communicator& world, const std::vector<Fact>& facts) {
  const auto texts = gather_text(ctx, world, text_of(facts));
  for (const Fact& fact : facts) {
    std::vector<std::string> values;
    for (const std::string& text : texts) values.push_back(value_in(text, fact.name));
    const std::vector<int> ranks = ranks_that_differ(values);
    if (!ranks.empty()) refuse(ctx, world, fact.name, values[0], values[ranks[0]], ranks);
  }
}

std::vector<Fact> program_facts(const std::string& mpi_library) {
  std::vector<Fact> facts = {{"the build of braid", kBuildId},
                             {"the executable's SHA-256", program_digest()},
                             {"the MPI library", mpi_library}};
  for (const char* variable : kVariables) {
    const char* value = std::getenv(variable);
    facts.push_back({concat("environment variable ", variable), value ? value : "(not set)"});
  }
  return facts;
}

std::vector<std::string> notes_of_environment() {
  std::vector<std::string> notes;
  for (const char* variable : kVariables) {
    const char* value = std::getenv(variable);
    const std::string set = concat(variable, '=', value ? value : "");
    // What Braid sets where the user does not; the second decides about queues alone.
    if (!value || set == "NCCL_NVLS_ENABLE=0" || set.starts_with("CUDA_DEVICE_MAX_CONNECTIONS=")) continue;
    notes.push_back(
        concat("the environment says ", set, ", which may change what comes out: the same bits want the same again",
               set == "NCCL_NVLS_ENABLE=1" ? "; reductions inside the switch are not repeatable at all" : ""));
  }
  return notes;
}

RunConfig agree_on_config(Context& ctx, Communicator& world, const std::function<RunConfig()>& read) {
  std::optional<RunConfig> config;
  const auto digests = all_or_none(ctx, world, [&] {
    config = read();
    return sha256(to_yaml(*config));
  });
  const std::vector<int> ranks = ranks_that_differ(digests);
  if (ranks.empty()) return *config;
  const auto texts = gather_text(ctx, world, to_yaml(*config));
  const auto differences =
      compare_configs(read_config_text(texts[0], "rank 0's config"), read_config_text(texts[ranks[0]], "its config"));
  const ConfigDifference& first = differences.front();
  refuse(ctx, world, first.key, first.before, first.after, ranks);
}

void check_folder_is_shared(Context& ctx, Communicator& world, const std::string& dir) {
  if (world.size() == 1) return;
  const fs::path token_path = fs::path(dir) / ".start-token";
  const auto answer_path = [&](int rank) { return fs::path(dir) / concat(".start-answer-", rank); };
  const auto hosts = gather_text(ctx, world, host_name());
  const auto is_first_of_host = [&](int rank) {
    return std::find(hosts.begin(), hosts.end(), hosts[rank]) == hosts.begin() + rank;
  };
  const std::string token = from_first_rank(ctx, world, [&] {
    const std::string text = random_token();
    write_file_atomically(token_path.string(), text);
    return text;
  });
  const std::string remedy = "; run.dir must be one folder that every host can read and write";
  try {
    all_or_none(ctx, world, [&] {
      check<ConfigError>(shows_up(token_path, token), dir, ": ", host_name(), " does not see there what rank 0 (",
                         hosts[0], ") wrote", remedy);
      if (is_first_of_host(world.rank())) write_file_atomically(answer_path(world.rank()).string(), token);
      return std::string();
    });
    from_first_rank(ctx, world, [&] {
      for (int rank = 0; rank < world.size(); ++rank)
        check<ConfigError>(!is_first_of_host(rank) || shows_up(answer_path(rank), token), dir, ": rank 0 (", hosts[0],
                           ") does not see there what rank ", rank, " (", hosts[rank], ") wrote", remedy);
      return std::string();
    });
  } catch (const Error&) {
    std::error_code ignored;
    if (world.rank() == 0) fs::remove(token_path, ignored);
    fs::remove(answer_path(world.rank()), ignored);
    throw;
  }
  std::error_code ignored;
  if (is_first_of_host(world.rank())) fs::remove(answer_path(world.rank()), ignored);
  if (world.rank() == 0) fs::remove(token_path, ignored);
}

std::string table_of_ranks(Context& ctx, Communicator& world, const std::string& device) {
  const auto hosts = gather_text(ctx, world, host_name());
  const auto devices = gather_text(ctx, world, device);
  std::vector<std::pair<std::string, int>> lines;  // ranks, first of them
  size_t width = 0, host_width = 0;
  for (int begin = 0, end; begin < world.size(); begin = end) {
    std::vector<int> group;
    for (end = begin; end < world.size() && hosts[end] == hosts[begin] && devices[end] == devices[begin]; ++end)
      group.push_back(end);
    lines.emplace_back(rank_list(group), begin);
    width = std::max(width, lines.back().first.size());
    host_width = std::max(host_width, hosts[begin].size());
  }
  std::string text;
  for (const auto& [ranks, first] : lines)
    text += ranks + std::string(width - ranks.size() + 2, ' ') + hosts[first] +
            std::string(host_width - hosts[first].size() + 2, ' ') + devices[first] + "\n";
  return text;
}

}  // namespace braid
