// Shadow memory: out-of-bounds accesses, reads of what nobody wrote, and accesses that no barrier orders.

#include <algorithm>
#include <map>
#include <utility>

#include "emulate/machine.h"
#include "emulate/threads.h"

namespace contnet_fast::cuda::emulate {

namespace {

std::map<const std::byte*, std::unique_ptr<Memory>>& buffers() {
  static std::map<const std::byte*, std::unique_ptr<Memory>> all;
  return all;
}

bool ordered(const Access& before, const Access& now, int cluster) {
  if (before.era != now.era) return true;
  if (before.block != now.block) {
    const auto c = static_cast<uint32_t>(cluster);
    return before.block / c == now.block / c && before.cluster_barriers != now.cluster_barriers;
  }
  return before.thread == now.thread || before.cluster_barriers != now.cluster_barriers ||
         before.block_barriers != now.block_barriers ||
         (before.thread / 32 == now.thread / 32 && before.warp_barriers != now.warp_barriers);
}

bool same_thread(const Access& a, const Access& b) { return a.block == b.block && a.thread == b.thread; }
bool same_warp(const Access& a, const Access& b) { return a.block == b.block && a.thread / 32 == b.thread / 32; }

int64_t moved = 0;  // bytes read and written since they were last asked for

}  // namespace

Memory::Memory(std::string name, std::byte* data, size_t size, bool written, bool writable)
    : name(std::move(name)),
      data(data),
      size(size),
      writable(writable),
      content_(size, written ? kWritten : kUnwritten),
      shadow_(size) {}

void Memory::inside(ptrdiff_t offset, size_t bytes, const char* verb, Place place) const {
  if (!alive) fault(std::string(verb) + " " + name + " of a block that has returned", place);
  if (offset < 0 || static_cast<size_t>(offset) + bytes > size)
    fault(std::string("out of bounds: ") + verb + " bytes " + std::to_string(offset) + " to " +
              std::to_string(offset + static_cast<ptrdiff_t>(bytes) - 1) + " of " + name + ", which has " +
              std::to_string(size),
          place);
}

void Memory::race(const char* verb, size_t byte, Place place, const char* other, const Access& access) const {
  fault(std::string("race: ") + verb + " byte " + std::to_string(byte) + " of " + name + ", which block " +
            std::to_string(access.block) + " thread " + std::to_string(access.thread) + " " + other + " at " +
            describe(access.place) + " with no barrier between",
        place);
}

void Memory::read(ptrdiff_t offset, size_t bytes, Place place) {
  inside(offset, bytes, "reads", place);
  moved += static_cast<int64_t>(bytes);
  const Access now = access(era, place);
  const int cluster = cluster_size();
  for (auto i = static_cast<size_t>(offset); i < static_cast<size_t>(offset) + bytes; ++i) {
    Shadow& s = shadow_[i];
    if (content_[i] == kUnwritten)
      fault("reads byte " + std::to_string(i) + " of " + name + ", which nobody has written", place);
    if (content_[i] == kPending)
      fault("reads byte " + std::to_string(i) + " of " + name + ", the target of a cp.async of block " +
                std::to_string(s.writer.block) + " thread " + std::to_string(s.writer.thread) + " at " +
                describe(s.writer.place) + " that was not waited for",
            place);
    if (!ordered(s.writer, now, cluster)) race("reads", i, place, "wrote", s.writer);
    if (ordered(s.reader, now, cluster)) {
      if (s.reader.era == now.era && same_thread(s.reader, now) && !ordered(s.other, now, cluster)) {
        s.reader = now;  // keeps the other reader
      } else {
        s.reader = now;
        if (ordered(s.other, now, cluster)) s.other = Access{};
      }
    } else {  // another reader since the last barrier; one of another warp says most
      if (ordered(s.other, now, cluster) || same_warp(s.other, now) || !same_warp(s.reader, now)) s.other = s.reader;
      s.reader = now;
    }
  }
}

void Memory::write(ptrdiff_t offset, size_t bytes, Place place, Content content) {
  inside(offset, bytes, "writes", place);
  if (!writable) fault("writes byte " + std::to_string(offset) + " of " + name + ", which is an input", place);
  moved += static_cast<int64_t>(bytes);
  const Access now = access(era, place);
  const int cluster = cluster_size();
  for (auto i = static_cast<size_t>(offset); i < static_cast<size_t>(offset) + bytes; ++i) {
    Shadow& s = shadow_[i];
    if (content_[i] == kPending)
      fault("writes byte " + std::to_string(i) + " of " + name + ", the target of a cp.async at " +
                describe(s.writer.place) + " that was not waited for",
            place);
    if (!ordered(s.writer, now, cluster)) race("writes", i, place, "wrote", s.writer);
    if (!ordered(s.reader, now, cluster)) race("writes", i, place, "read", s.reader);
    if (!ordered(s.other, now, cluster)) race("writes", i, place, "read", s.other);
    s.writer = now;
    content_[i] = content;
  }
}

void Memory::land(ptrdiff_t offset, size_t bytes, const std::byte* from, Place place) {
  std::fill_n(content_.begin() + offset, bytes, static_cast<uint8_t>(kWritten));
  moved -= static_cast<int64_t>(from == nullptr ? bytes : 2 * bytes);  // they moved when the copy was asked for
  write(offset, bytes, place);
  if (from != nullptr) {
    std::copy_n(from, bytes, data + offset);
  } else {
    std::fill_n(data + offset, bytes, std::byte{0});
  }
}

void Memory::leave(uint32_t barriers) const {
  const Access now = access(era, Place{nullptr, 0});
  for (size_t i = 0; i < size; ++i) {
    for (const Access& other : {shadow_[i].writer, shadow_[i].reader, shadow_[i].other}) {
      if (other.era == era && other.block != now.block && other.cluster_barriers == barriers)
        fault("returns with no barrier after the access of block " + std::to_string(other.block) + " thread " +
                  std::to_string(other.thread) + " at " + describe(other.place) + " to byte " + std::to_string(i) +
                  " of its " + name,
              now.place);
    }
  }
}

ptrdiff_t Memory::first_unwritten() const {
  const auto found = std::find(content_.begin(), content_.end(), static_cast<uint8_t>(kUnwritten));
  return found == content_.end() ? -1 : found - content_.begin();
}

void register_buffer(const char* name, void* data, size_t size, bool written, bool writable) {
  auto* start = static_cast<std::byte*>(data);
  buffers()[start] = std::make_unique<Memory>(name, start, size, written, writable);
}

void forget_buffers() { buffers().clear(); }

void begin_era(uint32_t era) {
  for (auto& [start, memory] : buffers()) memory->era = era;
}

Memory* buffer_of(const void* data) {
  static Memory anywhere("memory of launches that are not run", nullptr, 0, false, false);
  if (noting()) return &anywhere;
  const auto* p = static_cast<const std::byte*>(data);
  auto found = buffers().upper_bound(p);
  if (found != buffers().begin()) {
    Memory& memory = *std::prev(found)->second;
    if (p <= memory.data + memory.size) return &memory;
  }
  throw Fault("a pointer given to a kernel is in no registered buffer");
}

}  // namespace contnet_fast::cuda::emulate

// Bytes that threads read and wrote, in shared memory and in buffers, since the last call.
extern "C" int64_t emulated_moved() { return std::exchange(contnet_fast::cuda::emulate::moved, 0); }
