// The graph kernels compiled for avx2.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/graph/attention_kernels.h"
#include "cpu/graph/graph_kernels.h"

#ifdef CONTNET_FAST_X86
#include "cpu/isa/begin_avx2.h"
namespace contnet_fast::avx2 {
#include "cpu/vectors-inl.h"

namespace {
constexpr int kRegister = 32;  // bytes
}

#include "cpu/graph/attention_kernels-inl.h"
#include "cpu/graph/graph_kernels-inl.h"
}  // namespace contnet_fast::avx2
#include "cpu/isa/end.h"
#endif
