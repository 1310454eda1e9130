// The graph kernels compiled for any CPU.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/graph/attention_kernels.h"
#include "cpu/graph/graph_kernels.h"

namespace contnet_fast::portable {
#include "cpu/vectors-inl.h"

namespace {
constexpr int kRegister = 16;  // bytes
}

#include "cpu/graph/attention_kernels-inl.h"
#include "cpu/graph/graph_kernels-inl.h"
}  // namespace contnet_fast::portable
