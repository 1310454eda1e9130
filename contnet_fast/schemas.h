// Schemas of the registered ops, read by C++ (csrc/bind/schemas.h) and by Python (contnet_fast/ops/schemas.py). The op
// contnet_fast::<op>_<backend> has the schema of its <op>; that of a field family's <family>_solve is SOLVE.

SCHEMA(rk_combine, "(Tensor[] ys, Tensor[] ks, float[] coefficients) -> Tensor[]")
SCHEMA(rk_combine_error,
       "(Tensor[] ys, Tensor[] ks, float[] coefficients, float[] error_coefficients, float rtol, float atol)"
       " -> (Tensor[], Tensor)")
SCHEMA(rk_combine_compensated,
       "(Tensor[] ys, Tensor[] cs, Tensor[] ks, float[] coefficients) -> (Tensor[], Tensor[])")

// what both passes of a solve share: state, nodal tensors and other tensors of the field, its spec, the time grid, what
// is kept for backward, the level, and how products are made where that is not in the dtype of sums to its precision
SCHEMA(SOLVE,
       "(Tensor x, Tensor?[] nodes, Tensor?[] operands, str[] words, int[] integers, float[] numbers, bool training, "
       "int[] counts, int[] cells, float[] weights, float[] rows, float[] update, int n_steps, str keep, str level, "
       "str products, "
       "bool return_steps) -> (Tensor y, Tensor statistics, Tensor[] saved)")
SCHEMA(SOLVE_BACKWARD,
       "(Tensor grad, "
       "Tensor x, Tensor?[] nodes, Tensor?[] operands, str[] words, int[] integers, float[] numbers, bool training, "
       "int[] counts, int[] cells, float[] weights, float[] rows, float[] update, int n_steps, str keep, str level, "
       "str products, "
       "Tensor[] saved, int[] wanted) -> Tensor[]")

// targets and sources [n, heads, depth] or [n, heads]; states [n, heads, features], [n, features] or none; factors
// [E, heads] or none; rows as contnet_fast.graphs.products.Rows
SCHEMA(graph_attention,
       "(Tensor targets, Tensor sources, Tensor? states, Tensor? factors, Tensor[] rows, float slope)"
       " -> (Tensor y, Tensor largest, Tensor sums)")
SCHEMA(graph_attention_backward,
       "(Tensor grad, Tensor targets, Tensor sources, Tensor? states, Tensor? factors, Tensor[] rows, float slope, "
       "Tensor largest, Tensor sums, int[] wanted) -> Tensor[]")

// half of a residual unit, shortcut + gain * F(x); mean and var: the running ones of a batch norm; kept: F(x), where
// backward reads it and y is something else; wanted: places of x, weight, bias, norm_weight and norm_bias
SCHEMA(conv_unit,
       "(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? mean, Tensor? var, "
       "Tensor? shortcut, bool normed, bool batch_statistics, float norm_eps, bool relu_first, float gain, "
       "str products, bool keep) -> (Tensor y, Tensor statistics, Tensor moments, Tensor kept)")
SCHEMA(conv_unit_backward,
       "(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? mean, "
       "Tensor? var, bool normed, bool batch_statistics, float norm_eps, bool relu_first, float gain, "
       "str products, Tensor moments, Tensor kept, int[] wanted) -> Tensor[]")

// the first layers of a network, relu(norm(F(x))); mean and var: the running ones of its batch norm; wanted: places of x,
// weight, norm_weight and norm_bias, of which x has none
SCHEMA(conv_stem,
       "(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, Tensor? mean, Tensor? var, "
       "bool batch_statistics, float norm_eps) -> (Tensor y, Tensor statistics, Tensor moments)")
SCHEMA(conv_stem_backward,
       "(Tensor grad, Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, Tensor? mean, Tensor? var, "
       "bool batch_statistics, float norm_eps, Tensor moments, int[] wanted) -> Tensor[]")
