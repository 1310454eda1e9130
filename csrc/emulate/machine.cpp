// Fibers, barriers and warps of one cluster after another.

#include "emulate/machine.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <mutex>
#include <string_view>
#include <utility>

#include "emulate/threads.h"
#include "runtime/limits.h"

namespace contnet_fast::cuda::emulate {

namespace {

constexpr size_t kStack = 256 * 1024, kGuard = 16 * 1024;
constexpr int kMostThreads = 1024, kMostCluster = 16;
constexpr int64_t kMostShared = 1024 * limits::most_shared();

enum class State { ready, waiting, returned };

struct Copy {
  Memory* to;
  ptrdiff_t offset;
  Memory* from;  // nullptr: zeros
  ptrdiff_t source;
  size_t bytes;
  int group;
};

struct Thread;

// Threads that wait for one another: a warp at an instruction, a block or a cluster at a barrier.
struct Meeting {
  std::vector<Thread*> members;
  int arrived = 0;
  const char* what = nullptr;
  Place place{nullptr, 0};
  uint32_t passed = 0;  // barriers among them so far
};

struct Block {
  int index, row, rank;
  Meeting meeting;
  std::vector<std::byte> bytes;
  std::unique_ptr<Memory> shared;
  int returned = 0;
};

struct Thread {
  jmp_buf context;
  ucontext_t start;
  bool started = false;
  State state = State::ready;
  Here here;
  Block* block;
  Meeting* warp;
  Meeting* waits = nullptr;
  void* argument = nullptr;
  std::vector<Copy> copies;
  int committed = 0;
};

// Stacks with a guard page below each, kept from launch to launch.
class Stacks {
 public:
  std::byte* of(size_t thread) {
    while (stacks_.size() <= thread) {
      void* p =
          mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw Fault("no memory for the stack of an emulated thread");
      mprotect(p, kGuard, PROT_NONE);
      stacks_.push_back(static_cast<std::byte*>(p) + kGuard);
    }
    return stacks_[thread];
  }

 private:
  std::vector<std::byte*> stacks_;
};

struct Machine {
  const Grid* grid = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::vector<Block> blocks;  // of the cluster that runs
  std::vector<Meeting> warps;
  std::vector<Thread> threads;
  Meeting cluster;
  Stacks stacks;
  Thread* current = nullptr;
  jmp_buf scheduler;
  std::string fault;
  uint32_t era = 0;
};

Machine machine;
std::mutex running;
int launches = 0;                    // since somebody asked
std::unique_ptr<std::string> noted;  // launches, a line each, that are not run; null: they are run

__attribute__((noinline)) void suspend() {
  if (_setjmp(machine.current->context) == 0) _longjmp(machine.scheduler, 1);
}

__attribute__((noinline)) void resume(Thread& thread) {
  machine.current = &thread;
  if (_setjmp(machine.scheduler) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    setcontext(&thread.start);
  }
  machine.current = nullptr;
}

void body() {
  try {
    (*machine.kernel)();
    for (const Copy& copy : machine.current->copies)
      fault("returns before it waited for its cp.async to byte " + std::to_string(copy.offset), Place{nullptr, 0});
    const Block& block = *machine.current->block;
    if (machine.grid->cluster > 1 && block.returned + 1 == machine.grid->threads)
      block.shared->leave(machine.cluster.passed);
  } catch (const std::exception& error) {
    machine.fault = error.what();
  }
  machine.current->state = State::returned;
  ++machine.current->block->returned;
  suspend();
}

void arrive(Meeting& meeting, const char* what, Place place) {
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.place = place;
  } else if (std::string_view(meeting.what) != what || meeting.place.line != place.line ||
             std::string_view(meeting.place.file) != place.file) {
    fault(std::string("divergence: ") + what + " while others wait at " + meeting.what + ", " + describe(meeting.place),
          place);
  }
  ++meeting.arrived;
}

bool complete(const Meeting& meeting) { return meeting.arrived == static_cast<int>(meeting.members.size()); }

void release(Meeting& meeting) {
  meeting.arrived = 0;
  for (Thread* thread : meeting.members) {
    thread->state = State::ready;
    thread->waits = nullptr;
  }
}

void wait(Meeting& meeting) {
  machine.current->state = State::waiting;
  machine.current->waits = &meeting;
  suspend();
}

void barrier(Meeting& meeting, const char* what, Place place) {
  arrive(meeting, what, place);
  if (complete(meeting)) {
    ++meeting.passed;
    release(meeting);
  } else {
    wait(meeting);
  }
}

// Nobody can go on: says who waits where, and who has returned.
std::string deadlock() {
  for (const Thread& thread : machine.threads) {
    if (thread.state != State::waiting) continue;
    const Meeting& meeting = *thread.waits;
    std::string missing;
    for (const Thread* member : meeting.members) {
      if (member->waits == &meeting) continue;
      missing = "block " + std::to_string(member->here.block) + " thread " + std::to_string(member->here.thread);
      missing += member->state == State::returned
                     ? " has returned"
                     : std::string(" waits at ") + member->waits->what + ", " + describe(member->waits->place);
      break;
    }
    return std::string(machine.grid->name) + ": divergence: " + std::to_string(meeting.arrived) + " of " +
           std::to_string(meeting.members.size()) + " threads wait at " + meeting.what + ", " +
           describe(meeting.place) + ", while " + missing;
  }
  return std::string(machine.grid->name) + ": nothing runs";
}

void prepare(int64_t first, int64_t row) {
  const Grid& grid = *machine.grid;
  const size_t threads = static_cast<size_t>(grid.threads), all = threads * static_cast<size_t>(grid.cluster);
  machine.blocks = std::vector<Block>(static_cast<size_t>(grid.cluster));
  machine.warps = std::vector<Meeting>(all / 32);
  machine.threads = std::vector<Thread>(all);
  machine.cluster = Meeting{};
  ++machine.era;
  for (size_t b = 0; b < machine.blocks.size(); ++b) {
    Block& block = machine.blocks[b];
    block.rank = static_cast<int>(b);
    block.index = static_cast<int>(first) + block.rank;
    block.row = static_cast<int>(row);
    block.bytes.assign(static_cast<size_t>(grid.shared) + 1024, std::byte{0xff});  // NaN in every format
    void* start = block.bytes.data();
    size_t space = block.bytes.size();
    std::align(1024, static_cast<size_t>(grid.shared), start, space);
    block.shared = std::make_unique<Memory>("shared memory", static_cast<std::byte*>(start),
                                            static_cast<size_t>(grid.shared), false, true);
    block.shared->era = machine.era;
  }
  for (size_t i = 0; i < all; ++i) {
    Thread& thread = machine.threads[i];
    thread.block = &machine.blocks[i / threads];
    thread.warp = &machine.warps[i / 32];
    thread.here = Here{static_cast<int>(i % threads),
                       grid.threads,
                       thread.block->index,
                       static_cast<int>(grid.blocks),
                       thread.block->row,
                       thread.block->rank,
                       grid.cluster};
    for (Meeting* meeting : {thread.warp, &thread.block->meeting, &machine.cluster})
      meeting->members.push_back(&thread);
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = machine.stacks.of(i);
    thread.start.uc_stack.ss_size = kStack;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, body, 0);
  }
}

void run_cluster() {
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t first = 0; first < machine.threads.size(); first += 32) {
      for (bool stepped = true; stepped;) {  // a warp runs until it waits for others
        stepped = false;
        for (size_t i = first; i < first + 32; ++i) {
          Thread& thread = machine.threads[i];
          if (thread.state != State::ready) continue;
          stepped = progress = true;
          resume(thread);
          if (!machine.fault.empty()) throw Fault(machine.fault);
          if (thread.block->returned == machine.grid->threads) thread.block->shared->alive = false;
        }
      }
    }
  }
  for (const Thread& thread : machine.threads)
    if (thread.state != State::returned) throw Fault(deadlock());
}

void check(const Grid& grid) {
  const std::string name = std::string(grid.name) + ": ";
  if (grid.threads < 32 || grid.threads > kMostThreads || grid.threads % 32 != 0)
    throw Fault(name + "blocks have 32 to 1024 threads in whole warps, not " + std::to_string(grid.threads));
  if (grid.shared > kMostShared)
    throw Fault(name + "a block has at most " + std::to_string(kMostShared / 1024) + " KiB of shared memory");
  if (grid.cluster < 1 || grid.cluster > kMostCluster || grid.blocks % grid.cluster != 0)
    throw Fault(name + "a grid is made of whole clusters of 1 to 16 blocks");
}

}  // namespace

std::string describe(Place place) {
  if (place.file == nullptr) return "its end";
  const std::string file = place.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line);
}

Access access(uint32_t era, Place place) {
  const Thread& thread = *machine.current;
  const auto linear = static_cast<uint32_t>(thread.here.row) * static_cast<uint32_t>(thread.here.blocks) +
                      static_cast<uint32_t>(thread.here.block);
  return Access{era,
                linear,
                static_cast<uint16_t>(thread.here.thread),
                machine.cluster.passed,
                thread.block->meeting.passed,
                thread.warp->passed,
                place};
}

int cluster_size() { return machine.grid->cluster; }

const Here& here() { return machine.current->here; }

Memory& shared_memory(int rank) { return *machine.blocks[static_cast<size_t>(rank)].shared; }

void fault(const std::string& what, Place place) {
  const Here& at = machine.current->here;
  throw Fault(std::string(machine.grid->name) + ": block " + std::to_string(at.block) + " thread " +
              std::to_string(at.thread) + " at " + describe(place) + ": " + what);
}

void sync_threads(Place place) { barrier(machine.current->block->meeting, "sync_threads", place); }
void sync_cluster(Place place) { barrier(machine.cluster, "sync_cluster", place); }
void sync_warp(Place place) { barrier(*machine.current->warp, "sync_warp", place); }

void meet(const char* what, void* argument, Act act, Place place) {
  Meeting& warp = *machine.current->warp;
  machine.current->argument = argument;
  arrive(warp, what, place);
  if (!complete(warp)) return wait(warp);
  void* arguments[32];
  for (size_t lane = 0; lane < 32; ++lane) arguments[lane] = warp.members[lane]->argument;
  act(arguments);
  release(warp);
}

void copy_async(Memory& to, ptrdiff_t offset, Memory* from, ptrdiff_t source, size_t bytes, Place place) {
  if (from != nullptr) from->read(source, bytes, place);
  to.write(offset, bytes, place, Memory::kPending);
  machine.current->copies.push_back({&to, offset, from, source, bytes, machine.current->committed});
}

void copy_async_commit() { ++machine.current->committed; }

void copy_async_wait(int pending, Place place) {
  Thread& thread = *machine.current;
  std::vector<Copy> rest;
  for (const Copy& copy : thread.copies) {
    if (copy.group >= thread.committed - pending) {
      rest.push_back(copy);
      continue;
    }
    if (copy.from != nullptr) copy.from->read(copy.source, copy.bytes, place);
    copy.to->land(copy.offset, copy.bytes, copy.from == nullptr ? nullptr : copy.from->data + copy.source, place);
  }
  thread.copies = std::move(rest);
}

bool noting() { return noted != nullptr; }

void run(const Grid& grid, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> alone(running);
  check(grid);
  ++launches;
  if (noted != nullptr) {
    const int64_t sizes[] = {grid.blocks, grid.rows, grid.threads, grid.shared};
    for (const int64_t size : sizes) *noted += std::to_string(size) + ' ';
    *noted += std::string(grid.name) + '\n';
    return;
  }
  machine.grid = &grid;
  machine.kernel = &kernel;
  machine.fault.clear();
  begin_era(++machine.era);
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t first = 0; first < grid.blocks; first += grid.cluster) {
      prepare(first, row);
      run_cluster();
    }
  }
}

}  // namespace contnet_fast::cuda::emulate

extern "C" {

// Launches since the last call.
int emulated_launches() { return std::exchange(contnet_fast::cuda::emulate::launches, 0); }

// From here on launches are noted and not run: maps may be large, and pointers need not lead anywhere.
void emulated_note_launches() { contnet_fast::cuda::emulate::noted = std::make_unique<std::string>(); }

// Launches run again. What was noted, good until the next call: a line "blocks rows threads shared name" each.
const char* emulated_noted_launches() {
  static std::string lines;
  lines = *std::exchange(contnet_fast::cuda::emulate::noted, nullptr);
  return lines.c_str();
}

}  // extern "C"
