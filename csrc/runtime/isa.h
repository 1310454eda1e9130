// The instruction set that kernels on the CPU run with.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/export.h"

namespace contnet_fast {

// Each includes those before it. From avx512_bf16 on there are products of bfloat16 operands.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

CONTNET_FAST_API Isa instruction_set();
CONTNET_FAST_API std::string name(Isa);
CONTNET_FAST_API std::vector<std::string> instruction_sets();  // those that can run here
// All of them with why one cannot run here, which is empty where it can: not compiled, not found, denied or limited.
CONTNET_FAST_API std::vector<std::pair<std::string, std::string>> instruction_set_reasons();
CONTNET_FAST_API void use_instruction_set(const std::string&);
// To this one and those before it, also where they are not there.
CONTNET_FAST_API void limit_instruction_set(const std::string&);

}  // namespace contnet_fast
