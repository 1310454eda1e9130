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

  Key(const Geometry& g, const TimeGrid& grid, const ConvKernels<T>& table, const T* nodes, WeightId weight,
      bool backward)
      : id(std::move(weight)), kernels(&table), both(backward), channels(g.channels), slots(grid.slots) {
    const int64_t n = grid.basis * 9 * channels * channels, step = n <= kAll ? 1 : n / kSome;
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

template <typename T>
void pack_piece(const Geometry& g, const BasisWeights& slot, const ConvKernels<T>& kernels, const T* nodes,
                const Packed<T>& packed, int64_t place, Channels channels) {
  const int64_t row = int64_t(9) * g.channels, rows = std::min(channels.to, g.channels) - channels.from;
  T* const taps = thread_scratch<T>(row * (g.padded + rows));
  const T* weights =
      combine_nodes(slot, nodes + channels.from * row, g.channels * row, rows * row, taps + row * g.padded);
  kernels.pack(g, channels, weights, packed.transformed(place), packed.backward(place), taps);
}

}  // namespace

template <typename T>
void pack_slot(const Geometry& g, const BasisWeights& slot, const ConvKernels<T>& kernels,
               const std::vector<const T*>& nodes, const PackedAll<T>& packed) {
  over_output_channels(g, static_cast<int64_t>(nodes.size()), [&](int64_t c, Channels channels) {
    pack_piece(g, slot, kernels, nodes[c], *packed[c], 0, channels);
  });
}

template <typename T>
PackedAll<T> pack_all(const Geometry& g, const TimeGrid& grid, const ConvKernels<T>& kernels,
                      const std::vector<const T*>& nodes, const WeightId* ids, bool both) {
  const int64_t slots = static_cast<int64_t>(grid.slots.size()), size = slots * (both ? 2 : 1) * g.weights();
  struct Fresh {
    std::shared_ptr<Packed<T>> packed;
    std::optional<Key<T>> key;
    size_t convolution;
  };
  PackedAll<T> found(nodes.size());
  std::vector<Fresh> fresh;
  for (size_t c = 0; c < nodes.size(); ++c) {
    std::optional<Key<T>> key;
    if (ids[c].owner != nullptr) {
      key.emplace(g, grid, kernels, nodes[c], ids[c], both);
      found[c] = cache<T>().find(*key);
    }
    if (found[c] != nullptr) continue;
    auto packed = std::make_shared<Packed<T>>();
    packed->size = g.weights();
    packed->both = both;
    packed->memory.resize(size);
    found[c] = packed;
    fresh.push_back({packed, std::move(key), c});
  }
  if (fresh.empty()) return found;
  over_output_channels(g, static_cast<int64_t>(fresh.size()) * slots, [&](int64_t i, Channels channels) {
    const Fresh& one = fresh[i / slots];
    pack_piece(g, grid.slots[i % slots], kernels, nodes[one.convolution], *one.packed, i % slots, channels);
  });
  for (Fresh& one : fresh)
    if (one.key) cache<T>().keep(std::move(*one.key), one.packed, size * static_cast<int64_t>(sizeof(T)));
  return found;
}

void forget_packed_weights() {
  cache<float>().clear();
  cache<double>().clear();
}

#define CONTNET_FAST_PACKING(T)                                                                                      \
  template void pack_slot(const Geometry&, const BasisWeights&, const ConvKernels<T>&, const std::vector<const T*>&, \
                          const PackedAll<T>&);                                                                      \
  template PackedAll<T> pack_all(const Geometry&, const TimeGrid&, const ConvKernels<T>&,                            \
                                 const std::vector<const T*>&, const WeightId*, bool);
CONTNET_FAST_PACKING(float)
CONTNET_FAST_PACKING(double)
#undef CONTNET_FAST_PACKING

}  // namespace contnet_fast
