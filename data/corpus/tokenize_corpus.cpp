#include "data/corpus/tokenize_corpus.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "data/corpus/dataset_writer.h"
#include "data/corpus/text_input.h"
#include "data/json_reason.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kBatchBytes = size_t{256} << 10;
constexpr size_t kBytesInFlight = size_t{64} << 20;
constexpr size_t kComplaints = 20;

// Where a document comes from: record r is line r of JSON lines, counted from 0, or 0 for a text.
struct Position {
  int64_t file = 0, record = 0;
};

// Records of one file on their way to a worker.
struct Batch {
  int64_t number = 0;
  Position first;
  std::string bytes;
  std::vector<size_t> ends;     // of each record in `bytes`
  int64_t input_bytes_end = 0;  // of all inputs, as they lie on the disk
};

struct Record {
  enum class Kind : uint8_t { kDocument, kBlank, kUnreadable } kind = Kind::kDocument;
  size_t tokens_end = 0;  // in Tokenized::tokens
  int64_t repaired = 0;
  std::string complaint;
};

struct Tokenized {
  Position first;
  int64_t input_bytes_end;  // see Batch
  std::vector<Record> records;
  std::vector<uint32_t> tokens;
};

// Batches from the reader to the workers, results from these to the writer in the order of the batches.
class Pipeline {
 public:
  // Waits for room. False if the pipeline was stopped.
  bool put(Batch batch) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_stopped_ || bytes_ == 0 || bytes_ + batch.bytes.size() <= kBytesInFlight; });
    if (is_stopped_) return false;
    bytes_ += batch.bytes.size();
    todo_.push_back(std::move(batch));
    changed_.notify_all();
    return true;
  }
  void finish(int64_t num_batches) {
    const std::scoped_lock lock(mutex_);
    num_batches_ = num_batches;
    changed_.notify_all();
  }
  void stop(std::exception_ptr error) {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = error;
    is_stopped_ = true;
    changed_.notify_all();
  }
  std::optional<Batch> take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_stopped_ || !todo_.empty() || num_batches_ >= 0; });
    if (is_stopped_ || todo_.empty()) return {};
    Batch batch = std::move(todo_.front());
    todo_.pop_front();
    return batch;
  }
  void give(int64_t number, size_t bytes, Tokenized result) {
    const std::scoped_lock lock(mutex_);
    done_.emplace(number, std::pair{bytes, std::move(result)});
    changed_.notify_all();
  }
  // The next result; nothing at the end. Throws what a thread has thrown.
  std::optional<Tokenized> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_stopped_ || done_.contains(next_) || num_batches_ == next_; });
    if (error_) std::rethrow_exception(error_);
    const auto found = done_.find(next_);
    if (found == done_.end()) return {};
    ++next_;
    bytes_ -= found->second.first;
    Tokenized result = std::move(found->second.second);
    done_.erase(found);
    changed_.notify_all();
    return result;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Batch> todo_;
  std::map<int64_t, std::pair<size_t, Tokenized>> done_;
  size_t bytes_ = 0;
  int64_t num_batches_ = -1, next_ = 0;
  bool is_stopped_ = false;
  std::exception_ptr error_;
};

void read_inputs(const std::vector<TextInput>& files, Position from, Pipeline& pipeline) {
  int64_t number = 0, bytes_before = 0;
  for (int64_t f = 0; f < static_cast<int64_t>(files.size()); bytes_before += files[f++].bytes) {
    if (f < from.file) continue;
    const int64_t skipped = f == from.file ? from.record : 0;
    ByteSource source(files[f].path);
    if (!files[f].is_json_lines) {
      if (skipped > 0) continue;
      Batch batch{number, {f, 0}, "", {}, 0};
      while (source.read(batch.bytes, kBatchBytes)) {}
      batch.ends.push_back(batch.bytes.size());
      batch.input_bytes_end = bytes_before + files[f].bytes;
      if (!pipeline.put(std::move(batch))) return;
      ++number;
      continue;
    }
    int64_t line = 0;
    Batch batch{number, {f, 0}, "", {}, 0};
    bool is_more = true;
    while (is_more) {
      size_t searched = batch.bytes.size();
      is_more = source.read(batch.bytes, kBatchBytes);
      size_t begin = batch.ends.empty() ? 0 : batch.ends.back();
      for (size_t end; (end = batch.bytes.find('\n', std::max(searched, begin))) != batch.bytes.npos;
           begin = searched = end + 1)
        batch.ends.push_back(end + 1);
      // A last line without its end.
      if (!is_more && begin < batch.bytes.size()) batch.ends.push_back(batch.bytes.size());
      if (batch.ends.empty()) continue;
      Batch rest{number + 1, {f, 0}, batch.bytes.substr(batch.ends.back()), {}, 0};
      batch.bytes.resize(batch.ends.back());
      batch.first.record = line;
      line += static_cast<int64_t>(batch.ends.size());
      if (line <= skipped) {
        rest.number = number;
      } else {
        if (batch.first.record < skipped) {
          const auto drop = static_cast<size_t>(skipped - batch.first.record);
          const size_t bytes = batch.ends[drop - 1];
          batch.bytes.erase(0, bytes);
          batch.ends.erase(batch.ends.begin(), batch.ends.begin() + static_cast<std::ptrdiff_t>(drop));
          for (size_t& end : batch.ends) end -= bytes;
          batch.first.record = skipped;
        }
        batch.input_bytes_end = bytes_before + source.bytes_taken();
        if (!pipeline.put(std::move(batch))) return;
        ++number;
      }
      batch = std::move(rest);
    }
  }
  pipeline.finish(number);
}

Tokenized tokenize_batch(const Batch& batch, const TextInput& input, const std::string& key, TextEncoder& encoder) {
  Tokenized result{batch.first, batch.input_bytes_end, {}, {}};
  size_t begin = 0;
  for (size_t end : batch.ends) {
    const std::string_view bytes = std::string_view(batch.bytes).substr(begin, end - begin);
    begin = end;
    Record record;
    const int64_t repaired = encoder.num_repaired();
    std::string why;
    if (input.is_json_lines) {
      if (bytes.find_first_not_of(" \t\r\n") == bytes.npos) {
        record.kind = Record::Kind::kBlank;
      } else if (const auto text = text_of_line(bytes, key, record.repaired, why)) {
        encoder.encode(*text, result.tokens);
      }
    } else {
      why = why_not_text(bytes);
      if (why.empty()) encoder.encode(bytes, result.tokens);
    }
    record.repaired += encoder.num_repaired() - repaired;
    if (!why.empty()) {
      record.kind = Record::Kind::kUnreadable;
      record.repaired = 0;
      const auto line = batch.first.record + static_cast<int64_t>(result.records.size()) + 1;
      record.complaint =
          input.is_json_lines ? concat(input.name(), ":", line, ": ", why) : concat(input.name(), ": ", why);
    }
    record.tokens_end = result.tokens.size();
    result.records.push_back(std::move(record));
  }
  return result;
}

// One process at a time may write a dataset.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder) : path_((fs::path(folder) / ".lock").string()) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    check<IoError>(fd_ >= 0, path_, ": cannot be created: ", reason(errno));
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      ::close(fd_);
      throw IoError(concat(folder, ": another process is writing a dataset there"));
    }
  }
  ~FolderLock() {
    ::unlink(path_.c_str());
    ::close(fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::string path_;
  int fd_;
};

// What the result depends on: another digest is another dataset.
std::string digest_of_work(const Tokenizer& tokenizer, const CorpusOptions& options, const InputList& inputs) {
  Sha256 digest;
  const auto add = [&](const std::string& text) { digest.update(text.data(), text.size() + 1); };
  add(concat(tokenizer.digest(), ' ', tokenizer.end_of_document(), ' ', options.shard_tokens));
  add(options.text_key);
  for (const TextInput& file : inputs.files) {
    add(file.path);
    if (file.path != "-") add(concat(file.bytes, ' ', fs::last_write_time(file.path).time_since_epoch().count()));
  }
  return digest.hex();
}

// <out>/progress.json: what is finished of a dataset.
std::string progress_path(const std::string& folder) { return (fs::path(folder) / "progress.json").string(); }

void write_progress(const std::string& folder, const DatasetManifest& manifest, Position next) {
  const Json json = {{"file", next.file}, {"record", next.record}, {"manifest", to_json(manifest)}};
  write_file_atomically(progress_path(folder), json.dump());
}

struct Start {
  DatasetManifest manifest;
  Position next;
};

std::optional<Start> read_progress(const std::string& folder) {
  const std::string path = progress_path(folder);
  if (!fs::exists(path)) return {};
  const std::string text = file_text(path);
  try {
    const Json json = Json::parse(text);
    return Start{parse_manifest(json.at("manifest").get<std::string>(), path), {json.at("file"), json.at("record")}};
  } catch (const Json::exception& e) {
    throw DataError(concat(path, ": is damaged: ", json_reason(e)));
  }
}

// Documents to shards.
class Writer {
 public:
  Writer(const CorpusOptions& options, CorpusReport& report)
      : folder_(options.out), report_(report), shards_(options.out, report.manifest, options.shard_tokens) {}

  void add(const Tokenized& batch) {
    DatasetManifest& m = report_.manifest;
    size_t begin = 0;
    Position at = batch.first;
    for (const Record& record : batch.records) {
      ++at.record;
      if (record.kind == Record::Kind::kUnreadable) {
        ++m.unreadable;
        if (report_.complaints.size() < kComplaints) report_.complaints.push_back(record.complaint);
      }
      if (record.kind == Record::Kind::kDocument) {
        m.repaired += record.repaired;
        ++documents_;
        tokens_ += static_cast<int64_t>(record.tokens_end - begin) + 1;
        shards_.append(std::span(batch.tokens).subspan(begin, record.tokens_end - begin));
        if (shards_.end_document()) write_progress(folder_, m, at);
      }
      begin = record.tokens_end;
    }
  }
  void finish_shard(Position next) {
    if (shards_.finish_shard()) write_progress(folder_, report_.manifest, next);
  }
  int64_t documents() const { return documents_; }
  int64_t tokens() const { return tokens_; }

 private:
  const std::string& folder_;
  CorpusReport& report_;
  DatasetWriter shards_;
  int64_t documents_ = 0, tokens_ = 0;
};

}  // namespace

CorpusReport tokenize_corpus(const Tokenizer& tokenizer, const CorpusOptions& options,
                             const std::function<void(const CorpusProgress&)>& progress) {
  const InputList inputs = list_inputs(options.inputs);
  check_outside(options.out, options.inputs);  // a start that goes on would read its own shards as texts
  create_folder(options.out);
  const FolderLock lock(options.out);
  CorpusReport report;
  DatasetManifest& m = report.manifest;
  m.tokenizer = tokenizer.name();
  m.tokenizer_digest = tokenizer.digest();
  m.vocab_size = tokenizer.vocab_size();
  m.end_of_document = tokenizer.end_of_document();
  m.source_digest = digest_of_work(tokenizer, options, inputs);
  m.met_again = inputs.met_again;
  m.unreadable = std::ssize(inputs.no_files);
  const bool has_stream = std::any_of(inputs.files.begin(), inputs.files.end(), [](auto& f) { return f.path == "-"; });

  if (fs::exists(manifest_path(options.out))) {
    const DatasetManifest there = read_manifest(options.out);
    check<DataError>(!has_stream && there.source_digest == m.source_digest, options.out,
                     ": holds a dataset already, of other inputs or settings; choose another folder, or remove it");
    report.manifest = there;
    report.was_complete = true;
    return report;
  }
  Position from;
  if (auto start = read_progress(options.out)) {
    check<DataError>(
        start->manifest.source_digest == m.source_digest, options.out,
        ": holds part of a dataset of other inputs or settings; go on with those, or choose another folder");
    check<DataError>(!has_stream, options.out,
                     ": holds part of a dataset from standard input, which cannot be read again; remove the folder");
    m = std::move(start->manifest);
    from = start->next;
    report.documents_before = m.num_documents();
  }
  if (!tokenizer.file().empty()) {
    m.tokenizer_file = "tokenizer.json";
    write_file_atomically((fs::path(options.out) / m.tokenizer_file).string(), tokenizer.file());
  }

  Pipeline pipeline;
  CorpusProgress state;
  for (const TextInput& file : inputs.files) state.all_bytes += file.bytes;
  if (has_stream) state.all_bytes = 0;
  report.complaints = inputs.no_files;
  if (report.complaints.size() > kComplaints) report.complaints.resize(kComplaints);
  Writer writer(options, report);
  const auto guarded = [&](auto&& work) {
    return [&, work] {
      try {
        work();
      } catch (...) {
        pipeline.stop(std::current_exception());
      }
    };
  };
  std::vector<std::jthread> threads;
  struct StopAtEnd {
    Pipeline& pipeline;
    ~StopAtEnd() { pipeline.stop(nullptr); }
  };
  const StopAtEnd stop_at_end{pipeline};  // before the threads are joined
  threads.emplace_back(guarded([&] { read_inputs(inputs.files, from, pipeline); }));
  for (int job = 0; job < options.jobs; ++job)
    threads.emplace_back(guarded([&] {
      const auto encoder = tokenizer.encoder();
      while (const auto batch = pipeline.take())
        pipeline.give(batch->number, batch->bytes.size(),
                      tokenize_batch(*batch, inputs.files[batch->first.file], options.text_key, *encoder));
    }));
  while (const auto batch = pipeline.next()) {
    writer.add(*batch);
    state.bytes = batch->input_bytes_end;
    state.documents = writer.documents();
    state.tokens = writer.tokens();
    progress(state);
  }
  writer.finish_shard({static_cast<int64_t>(inputs.files.size()), 0});
  check<DataError>(m.num_documents() > 0, TextInput{.path = options.inputs.front()}.name(),
                   options.inputs.size() > 1 ? " and the others" : "", ": no document in ", inputs.files.size(),
                   " files", report.complaints.empty() ? "" : concat("; the first: ", report.complaints.front()));
  write_manifest(options.out, m);
  std::error_code error;
  fs::remove(progress_path(options.out), error);
  return report;
}

}  // namespace braid
