// Defines the ops of a backend that is written in C++, so that they are there without Python too.
#pragma once

#include <torch/library.h>

#include <string>

namespace contnet_fast {

namespace schemas {
#define SCHEMA(name, text) constexpr const char* name = text;
#include "../contnet_fast/schemas.h"
#undef SCHEMA
}  // namespace schemas

inline void define(torch::Library& m, const char* op, const std::string& backend, const char* schema) {
  m.def((op + ("_" + backend) + schema).c_str());
}

inline void define_combinations(torch::Library& m, const std::string& backend) {
  define(m, "rk_combine", backend, schemas::rk_combine);
  define(m, "rk_combine_error", backend, schemas::rk_combine_error);
  define(m, "rk_combine_compensated", backend, schemas::rk_combine_compensated);
}

inline void define_solve(torch::Library& m, const std::string& family, const std::string& backend) {
  define(m, (family + "_solve").c_str(), backend, schemas::SOLVE);
  define(m, (family + "_solve_backward").c_str(), backend, schemas::SOLVE_BACKWARD);
}

}  // namespace contnet_fast
