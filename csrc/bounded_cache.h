// What is worth remembering, but not for ever.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

namespace treadle {

// Values shared by all who ask for the same, found by a hash and a comparison. Invariant: never more than `capacity`
// values; when it is full, all are forgotten, which a program whose values are not made up as it goes never sees.
template <typename Value>
class BoundedCache {
 public:
  using Ref = std::shared_ptr<const Value>;

  explicit BoundedCache(size_t capacity) : capacity_(capacity) {}

  // Null if none matches. `matches` must run no Python.
  template <typename Matches>
  Ref find(size_t hash, Matches &&matches) const {
    if (auto bucket = buckets_.find(hash); bucket != buckets_.end()) {
      for (const Ref &known : bucket->second) {
        if (matches(*known)) return known;
      }
    }
    return nullptr;
  }

  void add(size_t hash, Ref value) {
    if (size_ >= capacity_) {
      // Swapped out first: what goes may run code that comes here again.
      Buckets dropped;
      dropped.swap(buckets_);
      size_ = 0;
    }
    buckets_[hash].push_back(std::move(value));
    ++size_;
  }

 private:
  using Buckets = std::unordered_map<size_t, std::vector<Ref>>;

  const size_t capacity_;
  size_t size_ = 0;
  Buckets buckets_;
};

}  // namespace treadle
