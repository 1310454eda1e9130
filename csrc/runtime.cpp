#include "include/runtime.h"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace contnet_fast {
namespace {

std::atomic<bool> recording{false};
std::mutex log_mutex;
std::vector<Run> run_log;

Isa widest() {
#ifdef CONTNET_FAST_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::portable;
}

std::atomic<Isa> in_use{widest()};

}  // namespace

Isa instruction_set() { return in_use; }

std::string name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
    if (isa <= widest()) names.push_back(name(isa));
  return names;
}

void use_instruction_set(const std::string& wanted) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
    if (isa <= widest() && name(isa) == wanted) {
      in_use = isa;
      return;
    }
  throw std::invalid_argument("instruction set: got '" + wanted + "', accepted: those of instruction_sets()");
}

void record(const char* op, const char* backend, const char* level, std::optional<int> launches) {
  if (!recording.load(std::memory_order_relaxed)) return;
  std::lock_guard<std::mutex> lock(log_mutex);
  run_log.emplace_back(op, backend, level, launches);
}

void start_recording(bool on) { recording = on; }

std::vector<Run> take_runs() {
  std::lock_guard<std::mutex> lock(log_mutex);
  return std::exchange(run_log, {});
}

}  // namespace contnet_fast
