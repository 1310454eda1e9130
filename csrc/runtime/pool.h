// Working memory that is used again by the next call, so that its pages are not given back and mapped in anew.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/export.h"

namespace contnet_fast {

// At least `bytes`, aligned to a cache line, not initialised. Given back to the pool when the last owner lets go.
std::shared_ptr<void> take_memory(std::size_t bytes);

CONTNET_FAST_API std::size_t pooled_bytes();  // held and unused
CONTNET_FAST_API void release_pool();         // to the system

// Working memory of the calling thread for one use at a time; it stays with the thread.
template <typename T>
T* thread_scratch(std::size_t n);

// An array of working memory.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t n) { resize(n); }
  void resize(std::size_t n) {
    if (n <= size_) return;
    memory_ = take_memory(n * sizeof(T));
    size_ = n;
  }
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  std::shared_ptr<void> memory_;
  std::size_t size_ = 0;
};

template <typename T>
T* thread_scratch(std::size_t n) {
  thread_local Buffer<T> buffer;
  buffer.resize(n);
  return buffer.data();
}

}  // namespace contnet_fast
