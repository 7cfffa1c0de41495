#include "data/pooled_file.h"

#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "kernels/core/error.h"

namespace braid {
namespace {

// The limit is one of the process, so there is one pool.
class Pool {
 public:
  std::shared_ptr<const RawFile> find(const PooledFile* key) {
    std::scoped_lock lock(mutex_);
    const auto found = place_of_.find(key);
    if (found == place_of_.end()) return nullptr;
    by_use_.splice(by_use_.begin(), by_use_, found->second);
    return found->second->file;
  }

  // Another thread may have opened it meanwhile: then its file stays.
  std::shared_ptr<const RawFile> add(const PooledFile* key, std::shared_ptr<const RawFile> file) {
    std::shared_ptr<const RawFile> oldest;  // closed behind the lock
    std::scoped_lock lock(mutex_);
    const auto [place, is_new] = place_of_.try_emplace(key);
    if (!is_new) return place->second->file;
    by_use_.push_front({key, std::move(file)});
    place->second = by_use_.begin();
    if (by_use_.size() > PooledFile::kMaxOpen) {
      oldest = std::move(by_use_.back().file);
      place_of_.erase(by_use_.back().key);
      by_use_.pop_back();
    }
    return by_use_.front().file;
  }

  void remove(const PooledFile* key) {
    std::scoped_lock lock(mutex_);
    const auto found = place_of_.find(key);
    if (found == place_of_.end()) return;
    by_use_.erase(found->second);
    place_of_.erase(found);
  }

 private:
  struct Open {
    const PooledFile* key;
    std::shared_ptr<const RawFile> file;
  };
  std::mutex mutex_;
  std::list<Open> by_use_;  // the last one used first
  std::unordered_map<const PooledFile*, std::list<Open>::iterator> place_of_;
};

Pool& pool() {
  static Pool pool;
  return pool;
}

}  // namespace

PooledFile::PooledFile(const std::string& path) : path_(path) {
  auto opened = std::make_shared<const RawFile>(RawFile::open(path));
  stamp_ = opened->stamp();
  pool().add(this, std::move(opened));
}

PooledFile::~PooledFile() { pool().remove(this); }

std::shared_ptr<const RawFile> PooledFile::file() const {
  if (auto open = pool().find(this)) return open;
  auto opened = std::make_shared<const RawFile>(RawFile::open(path_));
  check<DataError>(opened->stamp() == stamp_, path_, ": was changed or replaced while it was in use");
  return pool().add(this, std::move(opened));
}

}  // namespace braid
