// Defines the ops of the CPU, which the other files of this folder implement.
#include "bind/schemas.h"

TORCH_LIBRARY_FRAGMENT(contnet_fast, m) {
  using namespace contnet_fast;
  define_combinations(m, "cpu");
  define_solve(m, "conv", "cpu");
  define_solve(m, "diffusion", "cpu");
  define(m, "graph_attention", "cpu", schemas::graph_attention);
  define(m, "graph_attention_backward", "cpu", schemas::graph_attention_backward);
  define(m, "conv_stem", "cpu", schemas::conv_stem);
  define(m, "conv_stem_backward", "cpu", schemas::conv_stem_backward);
  define(m, "conv_unit", "cpu", schemas::conv_unit);
  define(m, "conv_unit_backward", "cpu", schemas::conv_unit_backward);
}
