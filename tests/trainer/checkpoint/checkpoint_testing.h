#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <barrier>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "data/sha256.h"
#include "parallel/communicator.h"

namespace braid::testing {

// A test with a folder of its own, which goes with it.
class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "braid_test_XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string folder_;
};

inline std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// In a new file: some file systems flush one to the disk that is emptied and written again, which takes ms.
inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << bytes;
}

// What body's exception of type E says; any other exception passes through.
template <class E>
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing was thrown";
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
}

// A manifest's text with this in front of its last two lines, and the digest that belongs to it.
inline std::string with_digest(const std::string& body) { return body + "\"digest\": \"" + sha256(body) + "\"\n}\n"; }
inline std::string without_digest(const std::string& text) { return text.substr(0, text.rfind("\"digest\"")); }

// No file may grow beyond `bytes` while it lives: what a full disk does, for every user and without a disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

// Ranks that are threads of this process, for code that only gathers.
class ThreadRanks {
 public:
  explicit ThreadRanks(int size) : shards_(size), barrier_(size) {}

  // Runs body(ctx, world) on every rank and waits for all.
  void run(const std::function<void(Context&, Communicator&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank) {
      threads.emplace_back([&, rank] {
        Context ctx = Context::cpu();
        Member world(*this, rank);
        body(ctx, world);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int size() const { return static_cast<int>(shards_.size()); }

  class Member final : public Communicator {
   public:
    Member(ThreadRanks& ranks, int rank) : ranks_(ranks), rank_(rank) {}
    int rank() const override { return rank_; }
    int size() const override { return ranks_.size(); }
    void all_gather(Context&, Tensor full, const Tensor& shard) override {
      ranks_.shards_[rank_] = shard;
      ranks_.barrier_.arrive_and_wait();
      char* to = static_cast<char*>(full.raw());
      for (const Tensor& part : ranks_.shards_) {
        EXPECT_EQ(part.bytes(), shard.bytes()) << "ranks disagree on what they gather";
        if (part.bytes() > 0) std::memcpy(to, part.raw(), part.bytes());
        to += part.bytes();
      }
      ranks_.barrier_.arrive_and_wait();
    }
    void all_reduce(Context&, Tensor, ReduceOp) override { fail(); }
    void reduce_scatter(Context&, Tensor, const Tensor&, ReduceOp) override { fail(); }
    void all_to_all_rows(Context&, Tensor, std::span<const int64_t>, const Tensor&, std::span<const int64_t>) override {
      fail();
    }
    void broadcast(Context&, Tensor, int) override { fail(); }
    void barrier(Context&) override { fail(); }
    std::unique_ptr<Communicator> split(int) override {
      fail();
      return nullptr;
    }

   private:
    static void fail() { ADD_FAILURE() << "these ranks only gather"; }
    ThreadRanks& ranks_;
    int rank_;
  };

  std::vector<Tensor> shards_;
  std::barrier<> barrier_;
};

}  // namespace braid::testing
