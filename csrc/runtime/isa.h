// The instruction set that kernels on the CPU run with.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace contnet_fast {

// Each includes those before it. From avx512_bf16 on there are products of bfloat16 operands.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

Isa instruction_set();
std::string name(Isa);
std::vector<std::string> instruction_sets();  // those that can run here
// All of them with why one cannot run here, which is empty where it can: not compiled, not found, denied or limited.
std::vector<std::pair<std::string, std::string>> instruction_set_reasons();
void use_instruction_set(const std::string&);
void limit_instruction_set(const std::string&);  // to this one and those before it, also where they are not there

}  // namespace contnet_fast
