#include "dispatch/plan.h"

#include <algorithm>

namespace treadle {
namespace {

// Enough for a few models taking turns.
constexpr size_t kRecentPlans = 4;

}  // namespace

void Plan::remember(const Flat &flat) {
  // Built aside: hashing statics runs user code, which may call this very function and come here again.
  Guards fresh(flat);
  std::swap(guards, fresh);
}

int Plan::traverse(visitproc visit, void *arg) const {
  for (const nb::object *held : {&traced, &call, &traced_effects, &first_effects}) Py_VISIT(held->ptr());
  if (placement.has_value()) {
    if (int found = placement->traverse(visit, arg)) return found;
  }
  return guards.traverse(visit, arg);
}

PlanRef PlanCache::find(const GraphDef &def) const {
  auto bucket = plans_.find(def.hash);
  if (bucket == plans_.end()) return nullptr;
  // Comparing runs user code, which may change the bucket.
  std::vector<PlanRef> candidates = bucket->second;
  for (const PlanRef &plan : candidates) {
    nb::object held = plan->traced;
    if (graphdef_of(held).equals(def)) return plan;
  }
  return nullptr;
}

void PlanCache::add(const PlanRef &plan) {
  while (age_.size() >= capacity_) drop(PlanRef(age_.front()));
  std::vector<PlanRef> &bucket = plans_[graphdef_of(plan->traced).hash];
  age_.push_back(plan);
  try {
    bucket.push_back(plan);
  } catch (const std::bad_alloc &) {
    age_.pop_back();
    throw;
  }
}

void PlanCache::drop(const PlanRef &plan) {
  auto remove = [&](std::vector<PlanRef> &list) {
    list.erase(std::remove(list.begin(), list.end(), plan), list.end());
  };
  remove(recent_);
  remove(age_);
  for (auto bucket = plans_.begin(); bucket != plans_.end();) {
    remove(bucket->second);
    bucket = bucket->second.empty() ? plans_.erase(bucket) : std::next(bucket);
  }
}

void PlanCache::use(const PlanRef &plan) {
  if (!recent_.empty() && recent_.front() == plan) return;
  // Code that ran since the plan was found may have cleared the cache.
  auto place = std::find(age_.begin(), age_.end(), plan);
  if (place == age_.end()) return;
  std::rotate(place, place + 1, age_.end());
  recent_.erase(std::remove(recent_.begin(), recent_.end(), plan), recent_.end());
  recent_.insert(recent_.begin(), plan);
  if (recent_.size() > kRecentPlans) recent_.pop_back();
}

void PlanCache::clear() {
  // Swapped out first: what plans hold may run code when released.
  std::vector<PlanRef> dropped_recent, dropped_age;
  std::unordered_map<size_t, std::vector<PlanRef>> dropped;
  dropped_recent.swap(recent_);
  dropped_age.swap(age_);
  dropped.swap(plans_);
}

}  // namespace treadle
