// What every op shares: the instruction set in use, and the log of runs.
#pragma once

#include <string>
#include <vector>

namespace contnet_fast {

enum class Isa { portable, avx2, avx512 };

Isa instruction_set();
std::string name(Isa);
std::vector<std::string> instruction_sets();  // those that this CPU can run
void use_instruction_set(const std::string&);

void record(const char* op, const char* level);
void start_recording(bool on);
std::vector<std::pair<std::string, std::string>> take_runs();  // (op, level) since the last call, in order

}  // namespace contnet_fast
