// What a block of a whole solve needs, and which solves are refused; forward.
#include <algorithm>

#include "cuda/conv/conv_launch.h"
#include "cuda/conv/plan/conv_layout.h"

namespace contnet_fast::cuda {
namespace {

const char* refusal(const ConvProblem& p) {
  if (p.channels % 8 != 0 || p.channels < 8 || p.channels > kMostChannels)
    return "channels must be a multiple of 8 up to 256";
  if (p.stages < 1 || p.stages > kMostStages || p.steps < 1)
    return "schemes have 1 to 13 stages, solves 1 step or more";
  if (p.operand == Scalar::f64) return "operands are bfloat16, float16 or float32";
  if (p.norm == Norm::batch) return "statistics of the batch couple its images";
  if (p.state != p.operand && p.state != Scalar::f32) return "the state has the dtype of the operands, or float32";
  if (p.norm == Norm::sample && (p.group < 1 || p.channels % p.group != 0)) return "groups must divide the channels";
  return nullptr;
}

bool keeps_rates(const ConvProblem& p) {
  for (int s = 2; s < p.stages; ++s)
    for (int j = 0; j < s - 1; ++j)
      if (p.rows[s][j] != 0.f) return true;
  return false;
}

// An image by `cluster` blocks of equal rows, the last ones perhaps fewer.
SolvePlan plan_blocks(const ConvProblem& p, int channels, bool wide, int cluster) {
  SolvePlan plan{};
  plan.channels = channels;
  plan.wide = wide;
  plan.cluster = cluster;
  plan.rows = (p.height + cluster - 1) / cluster;
  const ConvLayout layout{channels, p.operand == Scalar::f32 ? 4 : 2, wide};
  const int64_t pixels = static_cast<int64_t>(plan.rows) * p.width, rows = 16 * layout.m();
  const int64_t warps_m = (pixels + rows - 1) / rows, threads = warps_m * layout.warps_n() * 32;
  plan.values = layout.values();
  plan.chunks = layout.chunks();
  if (threads > kMostThreads) {
    plan.refusal =
        cluster == kMostCluster ? "state and running update of an image exceed the registers of 8 multiprocessors"
        : wide ? "state and running update of an image exceed the registers of a multiprocessor without clusters"
               : "state and running update of an image exceed the registers of a multiprocessor";
    return plan;
  }
  plan.threads = static_cast<int32_t>(threads);
  const int64_t tile = static_cast<int64_t>(plan.rows + 2) * (p.width + 2) * layout.pixel() * layout.bytes;
  int64_t vectors = 2 * kVectors + kParameterRows + kMoments;
  if (p.norm == Norm::sample) vectors += warps_m + (wide ? kWideSampleVectors : kSampleVectors);
  const int64_t rest = 2 * layout.chunk_bytes() + 4 * vectors * channels;
  plan.tiles = 2 * tile + rest <= p.shared_limit ? 2 : 1;
  plan.shared = plan.tiles * tile + rest;
  if (plan.shared > p.shared_limit) plan.refusal = "the operand of an image exceeds the shared memory of a block";
  if (keeps_rates(p)) plan.scratch = int64_t{4} * p.images * cluster * p.stages * plan.values * plan.threads;
  return plan;
}

}  // namespace

// One block of registers to spare, if it holds an image; else warps of twice the pixels, in as few blocks as hold it.
SolvePlan plan_solve(const ConvProblem& p) {
  SolvePlan plan{};
  plan.refusal = refusal(p);
  if (plan.refusal != nullptr) return plan;
  int channels = 16;
  while (channels < p.channels) channels *= 2;
  if (channels <= 64) plan = plan_blocks(p, channels, false, 1);
  if (channels < kLeastWide || (channels <= 64 && plan.refusal == nullptr)) return plan;
  for (int cluster = 1; cluster <= std::min(p.cluster_limit, kMostCluster); cluster *= 2) {
    plan = plan_blocks(p, channels, true, cluster);
    if (plan.refusal == nullptr) break;
  }
  return plan;
}

}  // namespace contnet_fast::cuda
