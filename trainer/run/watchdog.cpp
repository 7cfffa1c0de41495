#include "trainer/run/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/process_info.h"
#include "kernels/core/stream.h"
#include "parallel/rank_text.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

std::string seconds(int64_t ms) { return concat((ms + 500) / 1000, " s"); }

std::string place_of(const RankView& r) {
  std::string text = concat("phase ", name_of(r.phase));
  if (r.step > 0) text += concat(", step ", r.step);
  if (r.call == 0) text += ", before any collective";
  else text += concat(r.in_collective ? ", in " : ", after ", name_of(r.collective), " number ", r.call);
  if (!r.slow_read.empty()) text += concat(", waits for a disk for ", seconds(r.slow_read_ms), ": ", r.slow_read);
  return text;
}

std::string others(const std::vector<RankView>& ranks, const std::vector<int>& named) {
  std::map<std::string, std::vector<int>> waiting;
  for (const RankView& r : ranks)
    if (r.phase != Phase::kEnded && std::find(named.begin(), named.end(), r.rank) == named.end())
      waiting[concat(name_of(r.collective), " number ", r.call)].push_back(r.in_collective ? r.rank : -1);
  std::string text;
  for (auto& [what, who] : waiting) {
    std::erase(who, -1);
    if (!who.empty()) text += concat("; ", rank_list(who), who.size() == 1 ? " waits in " : " wait in ", what);
  }
  return text;
}

// The named ones are all in the state of the first of them.
std::string blame(const std::vector<RankView>& ranks, const std::vector<const RankView*>& culprits,
                  const std::string& what) {
  std::vector<int> named;
  for (const RankView* r : culprits) named.push_back(r->rank);
  return concat(rank_list(named), " of ", host_name(), named.size() == 1 ? " " : " each ", what, ": ",
                place_of(*culprits.front()), others(ranks, named));
}

// The first collective, in the order of the first rank that knows it, that is another one on another rank of its group:
// programs that have parted.
std::string parted(const std::vector<RankView>& ranks) {
  std::map<std::pair<int64_t, int64_t>, std::pair<const RankView*, const SeenCall*>> first;
  for (const RankView& r : ranks)
    for (const SeenCall& call : r.calls) {
      const auto& [other, expected] = first.try_emplace({call.group, call.number}, &r, &call).first->second;
      if (call.collective == expected->collective && call.group_size == expected->group_size) continue;
      const auto text = [](const SeenCall& c) { return concat(name_of(c.collective), " of ", c.group_size, " ranks"); };
      return concat("the ranks of ", host_name(), " call different collectives: number ", call.number,
                    " of their group is ", text(*expected), " on rank ", other->rank, " and ", text(call), " on rank ",
                    r.rank, ": phase ", name_of(r.phase), ", step ", r.step);
    }
  return "";
}

// Whether its last collective is one with ranks of other hosts, of which nothing is known here.
bool waits_for_other_hosts(const std::vector<RankView>& ranks, const RankView& r) {
  if (r.calls.empty()) return false;
  const SeenCall& last = r.calls.back();
  const auto has_called = [&](const SeenCall& call) { return call.group == last.group; };
  return std::count_if(ranks.begin(), ranks.end(), [&](const RankView& other) {
           return std::any_of(other.calls.begin(), other.calls.end(), has_called);
         }) < last.group_size;
}

template <class Condition>
std::vector<const RankView*> select(const std::vector<RankView>& ranks, Condition&& condition) {
  std::vector<const RankView*> chosen;
  for (const RankView& r : ranks)
    if (r.phase != Phase::kEnded && condition(r)) chosen.push_back(&r);
  return chosen;
}

}  // namespace

ProcessActivity activity_of(int pid) {
  ProcessActivity activity;
  bool waits_for_disk = false;
  std::error_code error;
  for (fs::directory_iterator thread(concat("/proc/", pid, "/task"), error), end; !error && thread != end;
       thread.increment(error)) {
    const std::string folder = thread->path().string();
    const std::string stat = file_text(folder + "/stat");
    const size_t name_end = stat.rfind(')');
    if (name_end == stat.npos || stat.find(concat('(', kWatchdogThread)) != stat.npos) continue;
    Loud<std::istringstream> fields(stat.substr(name_end + 1));
    char state = '?';
    int64_t skipped = 0, user = 0, system = 0;
    fields >> state;
    for (int i = 0; i < 10; ++i) fields >> skipped;
    fields >> user >> system;
    if (thread->path().filename() == std::to_string(pid)) activity.state = state;
    waits_for_disk |= state == 'D';
    activity.work += user + system;
    if (thread->path().filename() == std::to_string(pid))
      Loud<std::istringstream>(file_text(folder + "/schedstat")) >> activity.main_ns;
    Loud<std::istringstream> io(file_text(folder + "/io"));
    std::string name;
    for (int64_t bytes = 0; io >> name >> bytes;)
      if (name == "rchar:" || name == "wchar:") activity.work += bytes;
  }
  if (waits_for_disk && activity.state == 'S') activity.state = 'D';
  return activity;
}

std::string verdict(const std::vector<RankView>& ranks, int64_t timeout_ms) {
  const auto gone = select(ranks, [](const RankView& r) { return !r.exists; });
  if (!gone.empty()) return blame(ranks, gone, "is gone without an end");

  if (std::string text = ranks.empty() ? "" : parted(ranks); !text.empty()) return text;

  // Everybody stands, except perhaps those that wait for one that stands.
  const bool all_quiet = std::all_of(ranks.begin(), ranks.end(), [&](const RankView& r) {
    return r.phase == Phase::kEnded || r.quiet_ms >= timeout_ms;
  });
  if (!all_quiet) return "";
  const auto stopped = select(ranks, [](const RankView& r) { return r.stopped; });
  if (!stopped.empty()) return blame(ranks, stopped, "is stopped, by SIGSTOP or a debugger");
  // It is looked at from a quarter of the time on.
  const int64_t asleep_ms = timeout_ms * 7 / 10;
  const auto asleep = select(ranks, [&](const RankView& r) { return !r.in_collective && r.asleep_ms >= asleep_ms; });
  if (!asleep.empty()) return blame(ranks, asleep, concat("does nothing for ", seconds(asleep.front()->quiet_ms)));
  // Where devices communicate, the others have gone on to wait for theirs, outside, for one that has not come so far.
  const auto all = select(ranks, [](const RankView&) { return true; });
  const auto by_call = [](const RankView* a, const RankView* b) { return a->call < b->call; };
  const int64_t most = all.empty() ? 0 : (*std::max_element(all.begin(), all.end(), by_call))->call;
  const auto left =
      select(ranks, [&](const RankView& r) { return r.in_collective && r.call < most && r.still_ms >= asleep_ms; });
  if (!left.empty())
    return blame(ranks, left, concat("sleeps inside a collective for ", seconds(left.front()->quiet_ms)));
  const auto busy = select(ranks, [](const RankView& r) { return !r.in_collective; });
  const auto too_long = select(ranks, [&](const RankView& r) {
    return !r.in_collective && r.phase == Phase::kStep && r.longest_step_ms > 0 &&
           r.quiet_ms >= std::max(timeout_ms, 5 * r.longest_step_ms);
  });
  if (!too_long.empty())
    return blame(ranks, too_long,
                 concat("computes for ", seconds(too_long.front()->quiet_ms), ", the longest step took ",
                        seconds(too_long.front()->longest_step_ms)));
  if (!busy.empty()) return "";  // it works, and the others wait for it

  // All are in collectives: who has begun fewer is behind, unless it waits for another host itself; among equals, who
  // sleeps while others look for its message.
  if (all.empty()) return "";
  const int64_t least = (*std::min_element(all.begin(), all.end(), by_call))->call;
  const auto last = select(ranks, [&](const RankView& r) { return r.call == least; });
  const auto behind =
      select(ranks, [&](const RankView& r) { return r.call == least && !waits_for_other_hosts(ranks, r); });
  if (!behind.empty() && last.size() < all.size())
    return blame(ranks, behind, concat("is behind for ", seconds(behind.front()->quiet_ms)));
  const auto sleepers = select(ranks, [&](const RankView& r) { return r.still_ms >= asleep_ms; });
  if (!sleepers.empty() && sleepers.size() < all.size())
    return blame(ranks, sleepers, concat("sleeps inside a collective for ", seconds(sleepers.front()->quiet_ms)));
  return blame(ranks, last,
               concat("waits for others for ", seconds(last.front()->quiet_ms),
                      ": a rank of another host, or the network between hosts, is at a stand"));
}

// The last half of those that are remembered; none if the rank has gone on so far meanwhile that they may be others.
std::vector<SeenCall> calls_of(const RankProgress& p) {
  constexpr int64_t kSeen = RankProgress::kCalls / 2;
  std::vector<SeenCall> calls;
  const int64_t last = p.calls_begun.load(std::memory_order_acquire);
  for (int64_t number = std::max<int64_t>(1, last - kSeen + 1); number <= last; ++number) {
    const RankProgress::Call& c = p.calls[static_cast<size_t>(number % RankProgress::kCalls)];
    calls.push_back(
        {c.group.load(), c.number_in_group.load(), static_cast<Collective>(c.collective.load()), c.group_size.load()});
  }
  if (p.calls_begun.load(std::memory_order_acquire) >= last + kSeen) calls.clear();
  return calls;
}

Watchdog::Watchdog(ProgressBoard& board, double timeout_s, Launcher launcher, End end)
    : board_(board),
      timeout_ms_(static_cast<int64_t>(timeout_s * 1e3)),
      end_(std::move(end)),
      launcher_(launcher == Launcher::kIsWatched ? getppid() : 0),
      seen_(static_cast<size_t>(board.size())),
      thread_([this] { watch(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ending_changed_.notify_all();
  thread_.join();
}

std::vector<RankView> Watchdog::look() {
  std::vector<RankView> views;
  const int64_t now = now_ms();
  for (int i = 0; i < board_.size(); ++i) {
    const RankProgress& p = board_.rank(i);
    Seen& seen = seen_[static_cast<size_t>(i)];
    const int pid = p.pid.load();
    const bool exists = kill(pid, 0) == 0 || errno == EPERM;
    seen.existed |= exists;
    const int64_t changes = p.changes.load(std::memory_order_acquire);
    if (changes != seen.changes) seen.changed_ms = now;
    seen.changes = changes;
    ProcessActivity activity;
    if (now - seen.changed_ms >= timeout_ms_ / 4) activity = activity_of(pid);
    if (activity.work == 0 || activity.work != seen.work || activity.is_ready()) seen.worked_ms = now;
    seen.work = activity.work;
    if (activity.main_ns == 0 || activity.main_ns != seen.main_ns || activity.is_ready()) seen.ran_ms = now;
    seen.main_ns = activity.main_ns;
    RankView view;
    view.rank = p.rank.load();
    view.phase = p.current_phase();
    view.step = p.step.load();
    view.in_collective = p.in_collective.load() != 0;
    view.call = p.calls_begun.load();
    view.collective = static_cast<Collective>(p.last_call().collective.load());
    view.calls = calls_of(p);
    view.exists = exists || !seen.existed;
    view.stopped = activity.state == 'T' || activity.state == 't';
    view.quiet_ms = now - seen.changed_ms;
    view.asleep_ms = (now - seen.worked_ms) / (activity.state == 'D' ? 5 : 1);  // a slow disk gets more time
    view.still_ms = now - seen.ran_ms;
    view.longest_step_ms = p.longest_step_ms.load();
    const SharedText::Value slow_read = p.slow_read.load();
    view.slow_read = slow_read.text;
    view.slow_read_ms = now - slow_read.since_ms;
    views.push_back(view);
  }
  return views;
}

void Watchdog::watch() {
  pthread_setname_np(pthread_self(), kWatchdogThread);
  const auto pause = std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms_ / 20, 50, 1000));
  std::unique_lock lock(mutex_);
  for (int64_t before = now_ms(); !ending_changed_.wait_for(lock, pause, [this] { return ending_; });) {
    const int64_t now = now_ms();
    if (now - before > 3 * pause.count() + 1000) seen_.assign(seen_.size(), Seen());  // it was stopped itself
    before = now;
    if (launcher_ != 0 && getppid() != launcher_) end_("the launcher is gone", board_, board_.claim_to_speak());
    const std::string found = verdict(look(), timeout_ms_);
    if (found.empty() && !board_.someone_speaks()) continue;
    // A rank that ends in good order looks like one that is gone for a moment.
    const bool speaks = !found.empty() && board_.claim_to_speak();
    if (!speaks && ending_changed_.wait_for(lock, std::chrono::seconds(5), [this] { return ending_; })) return;
    end_(found, board_, speaks);
  }
}

std::string flight_record(const ProgressBoard& board, const std::string& verdict) {
  nlohmann::ordered_json record = {{"time", utc_now()}, {"host", host_name()}, {"verdict", verdict}};
  const int64_t now = now_ms();
  for (int i = 0; i < board.size(); ++i) {
    const RankProgress& p = board.rank(i);
    nlohmann::ordered_json rank = {{"rank", p.rank.load()},
                                   {"pid", p.pid.load()},
                                   {"phase", name_of(p.current_phase())},
                                   {"step", p.step.load()},
                                   {"unchanged_ms", now - p.changed_ms.load()},
                                   {"in_collective", p.in_collective.load() != 0}};
    nlohmann::ordered_json calls = nlohmann::ordered_json::array();
    const int64_t last = p.calls_begun.load();
    for (int64_t number = std::max<int64_t>(1, last - RankProgress::kCalls + 1); number <= last; ++number) {
      const RankProgress::Call& c = p.calls[static_cast<size_t>(number % RankProgress::kCalls)];
      nlohmann::ordered_json call = {{"number", number},
                                     {"collective", name_of(static_cast<Collective>(c.collective.load()))},
                                     {"ranks", c.group_size.load()},
                                     {"bytes", c.bytes.load()},
                                     {"step", c.step.load()},
                                     {"begun_ms_ago", now - c.begin_ms.load()}};
      if (c.end_ms.load() != 0) call["ms"] = c.end_ms.load() - c.begin_ms.load();
      calls.push_back(std::move(call));
    }
    rank["collectives"] = std::move(calls);
    record["ranks"].push_back(std::move(rank));
  }
  return record.dump(1) + "\n";
}

}  // namespace braid
