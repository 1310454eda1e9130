// The instruction set that kernels on the CPU run with.
#pragma once

#include <string>
#include <vector>

namespace contnet_fast {

enum class Isa { portable, avx2, avx512 };

Isa instruction_set();
std::string name(Isa);
std::vector<std::string> instruction_sets();  // those that this CPU can run
void use_instruction_set(const std::string&);

}  // namespace contnet_fast
