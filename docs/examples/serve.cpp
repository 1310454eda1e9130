// Runs a file of `contnet-fast export --format aoti`, fused or portable, without Python:
//
//   serve MODEL.pt2 LIBRARY BATCH CHANNELS HEIGHT WIDTH
//
// LIBRARY is contnet_fast/libcontnet_fast.so, which registers our ops, or "none" for a portable model. Pixels are float32
// values on standard input, the outputs go to standard output; docs/service.md has the line that compiles this.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <vector>

int main(int count, char** words) {
  if (count != 7) {
    std::cerr << "usage: serve MODEL.pt2 LIBRARY BATCH CHANNELS HEIGHT WIDTH\n";
    return 2;
  }
  if (std::strcmp(words[2], "none") != 0 && dlopen(words[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << '\n';
    return 2;
  }
  std::vector<int64_t> shape;
  for (int i = 3; i < 7; ++i) shape.push_back(std::atoll(words[i]));
  try {
    torch::inductor::AOTIModelPackageLoader model(words[1]);
    at::Tensor images = at::empty(shape, at::kFloat);
    std::cin.read(static_cast<char*>(images.mutable_data_ptr()), static_cast<std::streamsize>(images.nbytes()));
    const at::Tensor outputs = model.run({images}).at(0).contiguous();
    std::cout.write(static_cast<const char*>(outputs.const_data_ptr()), static_cast<std::streamsize>(outputs.nbytes()));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
