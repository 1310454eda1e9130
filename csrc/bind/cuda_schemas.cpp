// Defines the ops of CUDA, which the other files of this folder implement.
#include "bind/schemas.h"

TORCH_LIBRARY_FRAGMENT(contnet_fast, m) {
  using namespace contnet_fast;
  define_combinations(m, "cuda");
  define_solve(m, "conv", "cuda");
  define_solve(m, "diffusion", "cuda");
  define(m, "graph_attention", "cuda", schemas::graph_attention);
  define(m, "graph_attention_backward", "cuda", schemas::graph_attention_backward);
}
