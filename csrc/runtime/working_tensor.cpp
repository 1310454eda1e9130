#include "runtime/working_tensor.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>

#include <memory>

#include "runtime/pool.h"

namespace contnet_fast {
namespace {

struct WorkingMemory : c10::Allocator {
  struct Owner {
    std::shared_ptr<void> memory;
    int64_t bytes;
  };
  static void report(const Owner& owner, int sign) {
    c10::reportMemoryUsageToProfiler(owner.memory.get(), sign * owner.bytes, 0, 0, c10::kCPU);
  }
  static void give_back(void* owner) {
    std::unique_ptr<Owner> last(static_cast<Owner*>(owner));
    report(*last, -1);
  }
  c10::DataPtr allocate(size_t bytes) override {
    auto* owner = new Owner{take_memory(bytes), static_cast<int64_t>(bytes)};
    report(*owner, 1);
    return {owner->memory.get(), owner, give_back, c10::kCPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

at::Tensor working_tensor(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType type) {
  static auto* const memory = new WorkingMemory;  // never destroyed: tensors may outlive static objects
  return at::detail::empty_strided_generic(sizes, strides, memory, c10::DispatchKeySet(c10::DispatchKey::CPU), type);
}

}  // namespace contnet_fast
