#include "parallel/progress.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <new>
#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/process_info.h"
#include "parallel/failpoint.h"
#include "parallel/rank_text.h"

namespace braid {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

RankProgress private_progress;
std::atomic<RankProgress*> own{&private_progress};

void changed(RankProgress& p) {
  p.changed_ms.store(now_ms(), kRelaxed);
  p.changes.fetch_add(1, std::memory_order_release);
}

void copy(RankProgress& to, const RankProgress& from) {
  to.pid = getpid();
  to.rank = from.rank.load();
  to.phase = from.phase.load();
  to.step = from.step.load();
  to.longest_step_ms = from.longest_step_ms.load();
  to.calls_begun = from.calls_begun.load();
  to.in_collective = from.in_collective.load();
  to.collective_ns = from.collective_ns.load();
  for (size_t i = 0; i < to.calls.size(); ++i) {
    RankProgress::Call& a = to.calls[i];
    const RankProgress::Call& b = from.calls[i];
    a.collective = b.collective.load();
    a.group_size = b.group_size.load();
    a.number = b.number.load();
    a.group = b.group.load();
    a.number_in_group = b.number_in_group.load();
    a.bytes = b.bytes.load();
    a.step = b.step.load();
    a.begin_ms = b.begin_ms.load();
    a.end_ms = b.end_ms.load();
  }
  changed(to);
}

constexpr const char* kSiteOf[] = {"comm.all_reduce", "comm.reduce_scatter", "comm.all_gather", "comm.all_to_all_rows",
                                   "comm.broadcast",  "comm.barrier",        "comm.split"};

// A collective from its begin to its end.
class CallScope {
 public:
  CallScope(Collective collective, int64_t group, int64_t number_in_group, int group_size, int64_t bytes)
      : progress_(own_progress()) {
    RankProgress& p = progress_;
    const int64_t number = p.calls_begun.load(kRelaxed) + 1;
    call_ = &p.calls[static_cast<size_t>(number % RankProgress::kCalls)];
    call_->collective.store(static_cast<int32_t>(collective), kRelaxed);
    call_->group_size.store(group_size, kRelaxed);
    call_->number.store(number, kRelaxed);
    call_->group.store(group, kRelaxed);
    call_->number_in_group.store(number_in_group, kRelaxed);
    call_->bytes.store(bytes, kRelaxed);
    call_->step.store(p.step.load(kRelaxed), kRelaxed);
    call_->begin_ms.store(now_ms(), kRelaxed);
    call_->end_ms.store(0, kRelaxed);
    p.calls_begun.store(number, std::memory_order_release);
    p.in_collective.fetch_add(1, kRelaxed);  // one of NCCL may be made of one of MPI
    changed(p);
    fault_point(kSiteOf[static_cast<size_t>(collective)]);
  }
  ~CallScope() {
    if (progress_.in_collective.fetch_sub(1, kRelaxed) == 1)  // not those that another one is made of
      progress_.collective_ns.fetch_add(now_ns() - begin_ns_, kRelaxed);
    call_->end_ms.store(now_ms(), kRelaxed);
    changed(progress_);
  }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

 private:
  RankProgress& progress_;
  RankProgress::Call* call_;
  int64_t begin_ns_ = now_ns();
};

class VisibleCommunicator final : public Communicator {
 public:
  VisibleCommunicator(std::unique_ptr<Communicator> inner, int64_t group) : inner_(std::move(inner)), group_(group) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  bool gpus_of_one_host() const override { return inner_->gpus_of_one_host(); }

  void all_reduce(Context& ctx, Tensor in_out, ReduceOp op) override {
    const CallScope scope(Collective::kAllReduce, group_, ++calls_, size(), in_out.bytes());
    inner_->all_reduce(ctx, in_out, op);
  }
  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    const CallScope scope(Collective::kReduceScatter, group_, ++calls_, size(), full.bytes());
    inner_->reduce_scatter(ctx, shard, full, op);
  }
  void all_gather(Context& ctx, Tensor full, const Tensor& shard) override {
    const CallScope scope(Collective::kAllGather, group_, ++calls_, size(), full.bytes());
    inner_->all_gather(ctx, full, shard);
  }
  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    const CallScope scope(Collective::kAllToAllRows, group_, ++calls_, size(), send.bytes());
    inner_->all_to_all_rows(ctx, recv, recv_rows, send, send_rows);
  }
  void broadcast(Context& ctx, Tensor in_out, int root) override {
    const CallScope scope(Collective::kBroadcast, group_, ++calls_, size(), in_out.bytes());
    inner_->broadcast(ctx, in_out, root);
  }
  void barrier(Context& ctx) override {
    const CallScope scope(Collective::kBarrier, group_, ++calls_, size(), 0);
    inner_->barrier(ctx);
  }
  std::unique_ptr<Communicator> split(int color) override {
    const CallScope scope(Collective::kSplit, group_, ++calls_, size(), 0);
    const auto of_part = std::hash<std::string>()(concat(group_, ' ', calls_, ' ', color));  // the same on its members
    return std::make_unique<VisibleCommunicator>(inner_->split(color), static_cast<int64_t>(of_part));
  }

 private:
  std::unique_ptr<Communicator> inner_;
  int64_t group_, calls_ = 0;
};

}  // namespace

const char* name_of(Phase phase) {
  static constexpr const char* kNames[] = {"start", "load", "data", "step", "evaluation", "save", "ended"};
  return kNames[static_cast<size_t>(phase)];
}

const char* name_of(Collective collective) {
  static constexpr const char* kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "all_to_all_rows",
                                           "broadcast",  "barrier",        "split"};
  return kNames[static_cast<size_t>(collective)];
}

void SharedText::store(const std::string& text, int64_t since_ms) {
  if (since_ms_.load() == since_ms) return;
  since_ms_ = 0;
  const size_t cut = text.size() - std::min(text.size(), kBytes - 1), length = text.size() - cut;
  for (size_t i = 0; i < length; ++i) text_[i] = text[cut + i];
  text_[length] = 0;
  since_ms_ = since_ms;
}

SharedText::Value SharedText::load() const {
  Value value;
  value.since_ms = since_ms_.load();
  if (value.since_ms == 0) return {};
  for (size_t i = 0; i < kBytes - 1 && text_[i] != 0; ++i) value.text += text_[i].load();
  return since_ms_.load() == value.since_ms ? value : Value();
}

int64_t now_ms() { return now_ns() / 1'000'000; }

RankProgress& own_progress() { return *own.load(std::memory_order_acquire); }

void enter_phase(Phase phase) {
  RankProgress& p = own_progress();
  p.phase.store(static_cast<int32_t>(phase), kRelaxed);
  changed(p);
}

void enter_phase(Phase phase, int64_t step) {
  own_progress().step.store(step, kRelaxed);
  enter_phase(phase);
}

struct ProgressBoard::Shared {
  std::atomic<int32_t> speaker{0};
  RankProgress ranks[1];  // as many as there are
};

ProgressBoard::ProgressBoard(Context& ctx, Communicator& world) {
  const auto hosts = gather_text(ctx, world, host_name());
  std::vector<int> here;
  for (int rank = 0; rank < world.size(); ++rank)
    if (hosts[rank] == hosts[world.rank()]) here.push_back(rank);
  const auto place = static_cast<size_t>(std::find(here.begin(), here.end(), world.rank()) - here.begin());
  size_ = static_cast<int>(here.size());
  const size_t bytes = sizeof(Shared) + sizeof(RankProgress) * here.size();

  // The first rank of the host makes it under a name that all know, and takes the name away once all have it.
  const auto names = gather_text(ctx, world, concat("/braid-", getpid(), "-", now_ms()));
  const std::string name = names[static_cast<size_t>(here.front())];
  const auto open = [&](int flags) {
    const int fd = shm_open(name.c_str(), O_RDWR | O_CLOEXEC | flags, 0600);
    check<IoError>(fd >= 0, "shared memory ", name, " cannot be opened: ", reason(errno));
    return fd;
  };
  int fd = -1;
  all_or_none(ctx, world, [&] {
    if (place != 0) return std::string();
    fd = open(O_CREAT | O_EXCL);
    const bool has_room = ftruncate(fd, static_cast<off_t>(bytes)) == 0;
    check<IoError>(has_room, "shared memory of ", bytes, " bytes: ", reason(errno));
    return std::string();
  });
  all_or_none(ctx, world, [&] {
    if (place != 0) fd = open(0);
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    check<IoError>(memory != MAP_FAILED, "shared memory of ", bytes, " bytes: ", reason(errno));
    shared_ = static_cast<Shared*>(memory);  // zeros, which is what all members begin with
    return std::string();
  });
  if (place == 0) shm_unlink(name.c_str());
  RankProgress& mine = shared_->ranks[place];
  private_progress.rank = world.rank();
  copy(mine, private_progress);
  own.store(&mine, std::memory_order_release);
  world.barrier(ctx);  // all are there
}

ProgressBoard::~ProgressBoard() {
  RankProgress& shared = own_progress();
  copy(private_progress, shared);
  own.store(&private_progress, std::memory_order_release);
  shared.phase.store(static_cast<int32_t>(Phase::kEnded), kRelaxed);
  changed(shared);
}

const RankProgress& ProgressBoard::rank(int index) const { return shared_->ranks[index]; }

bool ProgressBoard::claim_to_speak() {
  int32_t nobody = 0;
  return shared_->speaker.compare_exchange_strong(nobody, 1);
}

bool ProgressBoard::someone_speaks() const { return shared_->speaker.load() != 0; }

std::unique_ptr<Communicator> with_progress(std::unique_ptr<Communicator> communicator) {
  static int64_t made = 0;  // in the same order on every rank
  return std::make_unique<VisibleCommunicator>(std::move(communicator), ++made);
}

}  // namespace braid
