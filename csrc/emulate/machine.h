// A grid of thread blocks on the CPU. Threads are fibers that switch at barriers and warp instructions only; memory
// remembers, byte by byte, what was written, by whom and when, so that faults of a kernel are found whatever the order
// of threads. docs/cuda.md says what this shows and what it cannot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/lib/types.h"

namespace contnet_fast::cuda::emulate {

// What a kernel did wrong, with kernel, block, thread and place.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the source. As a default argument it is the caller's.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Who touched a byte, and after how many barriers. Two accesses are ordered if a barrier that both threads take part in
// lies between them.
struct Access {
  uint32_t era = 0;  // of the memory: a launch, or one run of a block
  uint32_t block = 0;
  uint16_t thread = 0;
  uint32_t cluster_barriers = 0, block_barriers = 0, warp_barriers = 0;
  Place place{nullptr, 0};
};

// Bytes with a shadow: the shared memory of a block, or a buffer in global memory.
class Memory {
 public:
  enum Content : uint8_t { kUnwritten, kWritten, kPending };

  Memory(std::string name, std::byte* data, size_t size, bool written, bool writable);

  void read(ptrdiff_t offset, size_t bytes, Place place);
  void write(ptrdiff_t offset, size_t bytes, Place place, Content content = kWritten);
  void land(ptrdiff_t offset, size_t bytes, const std::byte* from, Place place);  // of cp.async, at its wait
  void leave(uint32_t barriers) const;  // its block returns, after so many barriers of the cluster
  ptrdiff_t first_unwritten() const;    // -1: none

  std::string name;
  std::byte* data;
  size_t size;
  bool writable;
  uint32_t era = 0;
  bool alive = true;  // false once the block it belongs to has returned

 private:
  struct Shadow {
    Access writer, reader, other;  // the last writer; the last reader; another one since the same barrier
  };
  void inside(ptrdiff_t offset, size_t bytes, const char* verb, Place place) const;
  [[noreturn]] void race(const char* verb, size_t byte, Place place, const char* other, const Access& access) const;
  std::vector<uint8_t> content_;
  std::vector<Shadow> shadow_;
};

// Global memory that kernels may touch. Memory that is not registered does not exist for them.
void register_buffer(const char* name, void* data, size_t size, bool written, bool writable);
void forget_buffers();
Memory* buffer_of(const void* data);  // of a pointer into a registered buffer; throws Fault

// ---- the thread that runs

struct Here {
  int thread, threads, block, blocks, row, rank, cluster;
};
const Here& here();
Memory& shared_memory(int rank);  // of a block of the cluster
[[noreturn]] void fault(const std::string& what, Place place);

void sync_threads(Place place);
void sync_cluster(Place place);
void sync_warp(Place place);

// The lanes of the warp meet: the last one to arrive calls `act` with the arguments of all 32.
using Act = void (*)(void* const* arguments);
void meet(const char* what, void* argument, Act act, Place place);

void copy_async(Memory& to, ptrdiff_t offset, Memory* from, ptrdiff_t source, size_t bytes, Place place);
void copy_async_commit();
void copy_async_wait(int pending, Place place);

void run(const Grid& grid, const std::function<void()>& kernel);

}  // namespace contnet_fast::cuda::emulate
