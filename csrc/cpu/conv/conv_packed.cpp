#include "cpu/conv/conv_packed.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace contnet_fast {
namespace {

constexpr std::size_t kEntries = 32;
constexpr int64_t kCacheBytes = int64_t(64) << 20;

// What the weights were. The storage is known by a reference that does not keep it alive, so that another one at the
// same address is told apart. Version counters miss writes through `.data`: values are compared too, all of them in
// smaller weights and four thousand in even steps of larger ones.
template <typename T>
struct Key {
  static constexpr int64_t kAll = 65536, kSome = 4096;
  WeightId id;
  const void* kernels;
  bool both;
  int channels;
  std::vector<BasisWeights> slots;
  std::vector<T> values;

  Key(const SolveSpec& spec, const ConvKernels<T>& table, const T* nodes, WeightId weight, bool backward)
      : id(std::move(weight)), kernels(&table), both(backward), channels(spec.map.channels), slots(spec.grid.slots) {
    const int64_t n = spec.grid.basis * 9 * channels * channels, step = n <= kAll ? 1 : n / kSome;
    if (step == 1) {
      values.assign(nodes, nodes + n);
    } else {
      for (int64_t i = 0; i < n; i += step) values.push_back(nodes[i]);
    }
  }
  bool same_weights(const Key& other) const {
    return id.owner->storage() == other.id.owner->storage() && id.data == other.id.data;
  }
  bool serves(const Key& wanted) const {
    return same_weights(wanted) && !id.owner->gone() && id.version == wanted.id.version && kernels == wanted.kernels &&
           (both || !wanted.both) && channels == wanted.channels && slots == wanted.slots &&
           values.size() == wanted.values.size() &&
           std::memcmp(values.data(), wanted.values.data(), values.size() * sizeof(T)) == 0;
  }
  bool stale(const Key& latest) const {  // no call can want it any more
    return id.owner->gone() || (same_weights(latest) && id.version != latest.id.version);
  }
};

template <typename T>
struct Cache {
  struct Entry {
    Key<T> key;
    std::shared_ptr<const Packed<T>> packed;
    int64_t bytes;
  };
  std::mutex mutex;
  std::list<Entry> entries;  // the latest first
  int64_t bytes = 0;

  std::shared_ptr<const Packed<T>> find(const Key<T>& key) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto i = entries.begin(); i != entries.end(); ++i)
      if (i->key.serves(key)) {
        entries.splice(entries.begin(), entries, i);
        return i->packed;
      }
    return nullptr;
  }
  void keep(Key<T> key, std::shared_ptr<const Packed<T>> packed, int64_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto i = entries.begin(); i != entries.end();) i = i->key.stale(key) ? drop(i) : std::next(i);
    entries.push_front({std::move(key), std::move(packed), size});
    bytes += size;
    while (entries.size() > kEntries || bytes > kCacheBytes) drop(std::prev(entries.end()));
  }
  void clear() {
    std::lock_guard<std::mutex> lock(mutex);
    entries.clear();
    bytes = 0;
  }

 private:
  typename std::list<Entry>::iterator drop(typename std::list<Entry>::iterator entry) {
    bytes -= entry->bytes;
    return entries.erase(entry);
  }
};

template <typename T>
Cache<T>& cache() {
  static Cache<T>* const one = new Cache<T>;
  return *one;
}

}  // namespace

template <typename T>
void pack_slot(const SolveSpec& spec, const ConvKernels<T>& kernels, const T* nodes, int64_t slot,
               const Packed<T>& packed, int64_t place) {
  const int64_t size = int64_t(9) * spec.map.channels * spec.map.channels;
  T* scratch = thread_scratch<T>(size + int64_t(9) * spec.map.channels * spec.map.padded + 16);
  const T* weights = combine_nodes(spec.grid.slots[slot], nodes, size, scratch);
  kernels.pack(spec.map, weights, packed.transformed(place), packed.backward(place), scratch + (size + 15) / 16 * 16);
}

template <typename T>
PackedPair<T> pack_all(const SolveSpec& spec, const ConvKernels<T>& kernels, const T* const* nodes, const WeightId* ids,
                       bool both) {
  const int64_t slots = static_cast<int64_t>(spec.grid.slots.size());
  const T* const weights[2] = {nodes[kWeight1], nodes[kWeight2]};
  PackedPair<T> found;
  std::shared_ptr<Packed<T>> fresh[2];
  std::optional<Key<T>> keys[2];
  for (int c = 0; c < 2; ++c) {
    if (ids[c].owner != nullptr) {
      keys[c].emplace(spec, kernels, weights[c], ids[c], both);
      found.conv[c] = cache<T>().find(*keys[c]);
    }
    if (found.conv[c] != nullptr) continue;
    fresh[c] = std::make_shared<Packed<T>>();
    fresh[c]->size = spec.map.weights();
    fresh[c]->both = both;
    fresh[c]->memory.resize(slots * (both ? 2 : 1) * fresh[c]->size);
    found.conv[c] = fresh[c];
  }
  if (fresh[0] == nullptr && fresh[1] == nullptr) return found;
  at::parallel_for(0, 2 * slots, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      if (fresh[i % 2] != nullptr) pack_slot(spec, kernels, weights[i % 2], i / 2, *fresh[i % 2], i / 2);
  });
  for (int c = 0; c < 2; ++c)
    if (fresh[c] != nullptr && keys[c])
      cache<T>().keep(std::move(*keys[c]), fresh[c],
                      slots * (both ? 2 : 1) * fresh[c]->size * static_cast<int64_t>(sizeof(T)));
  return found;
}

void forget_packed_weights() {
  cache<float>().clear();
  cache<double>().clear();
}

template void pack_slot(const SolveSpec&, const ConvKernels<float>&, const float*, int64_t, const Packed<float>&,
                        int64_t);
template void pack_slot(const SolveSpec&, const ConvKernels<double>&, const double*, int64_t, const Packed<double>&,
                        int64_t);
template PackedPair<float> pack_all(const SolveSpec&, const ConvKernels<float>&, const float* const*, const WeightId*,
                                    bool);
template PackedPair<double> pack_all(const SolveSpec&, const ConvKernels<double>&, const double* const*,
                                     const WeightId*, bool);

}  // namespace contnet_fast
