// Small kernels with a planted fault each (tests/emulated/test_cuda_emulator.py); `fault` 0 is the same kernel without it.

#include "emulate/entries.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 64;

enum Fault {
  kNone,
  kMissingBarrier,       // reads what another warp wrote
  kMissingWarpBarrier,   // reads what another lane wrote
  kOverwrite,            // overwrites what another thread may still read
  kSharedBounds,         // one past an array, inside shared memory
  kSharedUnwritten,
  kDivergentBarrier,     // half of the threads return
  kTwoBarriers,          // two warps at different barriers
  kDivergentShuffle,
  kEarlyCopy,            // reads the target of cp.async before its wait
  kEarlyGroup,           // waits for the older of two groups and reads the newer
  kCopyNoBarrier,        // waited for by the thread that copied alone
  kForgottenCopy,
  kGlobalBounds,
  kGlobalUnwritten,
  kGlobalInput,          // writes an input
  kTwoBlocks,            // two blocks write the same byte
  kMisaligned,
};

KERNEL(kThreads) planted(int fault, Global<const float> in, Global<float> out) {
  const int i = thread_index();
  Shared<float> a = shared_array<float>(0, kThreads), b = shared_array<float>(sizeof(float) * kThreads, kThreads);

  if (fault != kSharedUnwritten || i != 5) a[i] = 0.0f;
  sync_threads();
  if (fault != kSharedUnwritten || i != 5) a[i] = in[i];
  if (fault == kMissingWarpBarrier) out[i] = a[i ^ 1];
  if (fault == kDivergentBarrier && i >= 32) return;
  if (fault == kTwoBarriers && i >= 32) {
    sync_threads();
  } else if (fault != kMissingBarrier) {
    sync_threads();
  }
  float value = a[kThreads - 1 - i];
  if (fault == kOverwrite) a[i] = value;
  if (fault == kSharedBounds && i == kThreads - 1) a[i + 1] = value;
  if (fault == kMisaligned) value = load<4>(a, 1)[0];
  if (fault == kDivergentShuffle && i % 32 < 16) value = shuffle_xor(value, 1);

  if (i < kThreads / 4) copy_async<16>(b + 4 * i, in + 4 * i);
  copy_async_commit();
  if (fault == kEarlyCopy && i < kThreads / 4) value += b[4 * i];
  if (fault == kEarlyGroup) {
    copy_async_commit();
    copy_async_wait<2>();
    sync_threads();
    value += b[i];
  }
  if (fault == kForgottenCopy) return;
  copy_async_wait<0>();
  if (fault != kCopyNoBarrier) sync_threads();
  value += b[i];

  if (fault == kGlobalUnwritten) value += out[i];
  if (fault == kGlobalBounds) value += in[i + 1];
  if (fault == kGlobalInput) pointer_cast<float>(Global<float>(out))[i - kThreads] = value;
  const int block = fault == kTwoBlocks ? 0 : block_index();
  out[block * kThreads + i] = value;
}

// A byte passes from the first thread to the last over so many barriers; `without`: they meet in warps alone.
KERNEL(kThreads) over_barriers(int barriers, int without, Global<float> out) {
  Shared<float> a = shared_array<float>(0, 1);
  if (thread_index() == 0) a[0] = 1.0f;
  for (int i = 0; i < barriers; ++i) {
    if (without != 0) {
      sync_warp();
    } else {
      sync_threads();
    }
  }
  if (thread_index() == kThreads - 1) out[0] = a[0];
}

}  // namespace
}  // namespace contnet_fast::cuda

using namespace contnet_fast::cuda;

extern "C" const char* pass_over_barriers(int barriers, int without, float* out) {
  return guarded([&] { launch({"over_barriers", 1, kThreads, 4}, over_barriers, barriers, without, out); });
}

extern "C" const char* planted_fault(int fault, const float* in, float* out) {
  return guarded([&] { launch({"planted", 2, kThreads, 2 * kThreads * 4}, planted, fault, in, out); });
}
