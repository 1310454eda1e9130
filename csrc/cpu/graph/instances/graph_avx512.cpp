// The graph kernels compiled for avx512.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/graph/attention_kernels.h"
#include "cpu/graph/graph_kernels.h"

#ifdef CONTNET_FAST_X86
#include "cpu/isa/begin_avx512.h"
namespace contnet_fast::avx512 {
#include "cpu/vectors-inl.h"

namespace {
constexpr int kRegister = 64;  // bytes
}

#include "cpu/graph/attention_kernels-inl.h"
#include "cpu/graph/graph_kernels-inl.h"
}  // namespace contnet_fast::avx512
#include "cpu/isa/end.h"
#endif
