// How a pass divides its workspace.
#pragma once

#include <cstdint>

namespace contnet_fast::cuda {

// Pieces of the workspace; of none it counts.
class Arena {
 public:
  explicit Arena(void* start) : start_(static_cast<unsigned char*>(start)) {}
  unsigned char* take(int64_t bytes) {
    unsigned char* piece = start_ == nullptr ? nullptr : start_ + taken_;
    taken_ += (bytes + 255) / 256 * 256;
    return piece;
  }
  float* floats(int64_t count) { return reinterpret_cast<float*>(take(4 * count)); }
  int64_t taken() const { return taken_; }

 private:
  unsigned char* start_;
  int64_t taken_ = 0;
};

}  // namespace contnet_fast::cuda
