// The arguments that the ops of every field family share (contnet_fast/ops/schemas.py), and how words become enums.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/keep.h"
#include "runtime/time_grid.h"

namespace contnet_fast {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

enum class Level { solve, stage };
// Operands of products: in the dtype of sums, or rounded to bfloat16; coarse: in the dtype of sums, by any algorithm whose
// errors are far below those of operands in 16 bits.
enum class Products { sums, bfloat16, coarse };

template <typename Value>
struct Word {
  const char* word;
  Value value;
};

constexpr Word<Level> kLevels[] = {{"solve", Level::solve}, {"stage", Level::stage}};
constexpr Word<Products> kProducts[] = {
    {"", Products::sums}, {"bfloat16", Products::bfloat16}, {"coarse", Products::coarse}};
constexpr Word<Keep> kKeeps[] = {
    {"", Keep::nothing}, {"block", Keep::input}, {"step", Keep::steps}, {"none", Keep::everything}};

// The value of a word.
template <typename Value, size_t N>
Value read_word(const char* op, const char* argument, const std::string& got, const Word<Value> (&accepted)[N]) {
  std::string words;
  for (const Word<Value>& one : accepted) {
    if (got == one.word) return one.value;
    words += (words.empty() ? "'" : ", '") + std::string(one.word) + "'";
  }
  TORCH_CHECK_VALUE(false, op, ": ", argument, ": got '", got, "', accepted: ", words);
  return accepted[0].value;
}

template <typename Value, size_t N>
const char* word_of(Value value, const Word<Value> (&words)[N]) {
  for (const Word<Value>& one : words)
    if (one.value == value) return one.word;
  return "";
}

// The settings of a field, which its family packs, and of a solve.
struct SchemaArguments {
  std::vector<std::string> words;
  at::IntArrayRef integers;
  at::ArrayRef<double> numbers;
  bool training;
  at::IntArrayRef counts, cells;
  at::ArrayRef<double> weights, rows, update;
  int64_t n_steps;
  std::string keep, level, products;

  int64_t stages() const { return static_cast<int64_t>(update.size()); }
  // The slots of the time grid, for nodes of `basis` functions; the lists are of sizes that fit one another.
  TimeGrid time_grid(const char* op, int64_t basis) const {
    TORCH_CHECK(stages() >= 1 && n_steps >= 1 && rows.size() == update.size() * update.size() &&
                    counts.size() == static_cast<size_t>(n_steps * stages()) && cells.size() == weights.size(),
                op, ": a time grid of other sizes");
    try {
      return resolve_time_grid(counts.data(), counts.size(), cells.data(), weights.data(), cells.size(), basis);
    } catch (const std::out_of_range& error) {
      TORCH_CHECK(false, op, ": ", error.what());
    }
  }
};

}  // namespace contnet_fast
