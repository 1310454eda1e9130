#include "runtime/pool.h"

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

namespace contnet_fast {
namespace {

constexpr std::size_t kMost = std::size_t(256) << 20;  // held while unused; beyond it the oldest block goes

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
constexpr bool kGuarded = true;  // every block by itself, with its ends guarded
#else
constexpr bool kGuarded = false;
#endif

struct Block {
  void* data;
  std::size_t size;
};

struct Pool {
  std::mutex mutex;
  std::list<Block> blocks;  // the latest first
  std::size_t held = 0;
};

Pool& pool() {
  static Pool* const one = new Pool;  // never destroyed: owners may outlive static objects
  return *one;
}

void give_back(Block block) {
  if (block.size > kMost) return std::free(block.data);
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.blocks.push_front(block);
  p.held += block.size;
  while (p.held > kMost) {
    p.held -= p.blocks.back().size;
    std::free(p.blocks.back().data);
    p.blocks.pop_back();
  }
}

}  // namespace

std::shared_ptr<void> take_memory(std::size_t bytes) {
  const std::size_t size = (bytes + 4095) / 4096 * 4096;
  constexpr bool pooled = !kGuarded;
  Pool& p = pool();
  Block block{nullptr, size};
  if (pooled) {
    std::lock_guard<std::mutex> lock(p.mutex);
    auto best = p.blocks.end();
    for (auto i = p.blocks.begin(); i != p.blocks.end(); ++i)
      if (i->size >= size && i->size <= size + size / 4 && (best == p.blocks.end() || i->size < best->size)) best = i;
    if (best != p.blocks.end()) {
      block = *best;
      p.held -= block.size;
      p.blocks.erase(best);
    }
  }
  if (block.data == nullptr) block.data = std::aligned_alloc(4096, size == 0 ? 4096 : size);
  if (block.data == nullptr) throw std::bad_alloc();
  return {block.data, [=](void* data) {
            if (pooled)
              give_back({data, block.size});
            else
              std::free(data);
          }};
}

std::size_t pooled_bytes() {
  std::lock_guard<std::mutex> lock(pool().mutex);
  return pool().held;
}

void release_pool() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  for (const Block& block : p.blocks) std::free(block.data);
  p.blocks.clear();
  p.held = 0;
}

}  // namespace contnet_fast
