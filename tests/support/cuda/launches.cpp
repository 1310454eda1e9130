// What a launch asks of the CUDA runtime (tests/emulated/test_cuda_launches.py): prints it, a line a launch.
#include <iostream>

#include "cuda/lib/launch.h"

namespace contnet_fast::cuda {

int64_t& launch_count() {
  static int64_t count = 0;
  return count;
}

}  // namespace contnet_fast::cuda

using namespace contnet_fast::cuda;

static void one(int) {}
static void other(int) {}

static void try_launch(const char* what, int64_t shared, int cluster, void (*kernel)(int)) {
  runtime::asked.clear();
  try {
    launch({"kernel", 16, 32, shared, cluster}, kernel, 1);
  } catch (const std::runtime_error& error) {
    runtime::asked.push_back(error.what());
  }
  std::cout << what << ":";
  for (const std::string& word : runtime::asked) std::cout << ' ' << word;
  std::cout << '\n';
}

int main() {
  try_launch("small", 1024, 1, one);
  runtime::refuses = true;
  try_launch("refused", 100000, 1, one);
  runtime::refuses = false;
  try_launch("large", 100000, 1, one);
  try_launch("larger", 200000, 1, one);
  try_launch("another kernel", 100000, 1, other);
  try_launch("a large cluster", 100000, 16, one);
  try_launch("the same", 100000, 16, one);
  runtime::device = 1;
  try_launch("another device", 100000, 16, one);
  std::cout << launch_count() << " launches\n";
}
