#pragma once

#include <gtest/gtest.h>

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/communicator.h"

namespace braid::testing {

// Ranks that are threads of this process, for code that only gathers and broadcasts.
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
    void broadcast(Context& ctx, Tensor in_out, int root) override {
      std::vector<std::byte> all(static_cast<size_t>(in_out.bytes() * size()));
      const Tensor shard(in_out.raw(), DType::kU8, {in_out.bytes()});
      all_gather(ctx, Tensor(all.data(), DType::kU8, {in_out.bytes() * size()}), shard);
      if (in_out.bytes() > 0) std::memcpy(in_out.raw(), all.data() + root * in_out.bytes(), in_out.bytes());
    }
    void barrier(Context&) override { fail(); }
    std::unique_ptr<Communicator> split(int) override {
      fail();
      return nullptr;
    }

   private:
    static void fail() { ADD_FAILURE() << "these ranks only gather and broadcast"; }
    ThreadRanks& ranks_;
    int rank_;
  };

  std::vector<Tensor> shards_;
  std::barrier<> barrier_;
};

}  // namespace braid::testing
