#include "runtime/isa.h"

#include <atomic>
#include <stdexcept>

namespace contnet_fast {
namespace {

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

std::string name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

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

}  // namespace contnet_fast
