#include "runtime/runs.h"

#include <atomic>
#include <mutex>
#include <utility>

namespace contnet_fast {
namespace {

std::atomic<bool> recording{false};
std::mutex log_mutex;
std::vector<Run> run_log;

}  // namespace

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
