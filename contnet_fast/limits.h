// Limits of kernels and chips, read by C++ (csrc/runtime/limits.h) and by Python (contnet_fast/limits.py). A line is
// LIMIT(name, value) or CHIP(major, minor, KiB of shared memory that a block may have).

LIMIT(MOST_STAGES, 13)      // of a scheme: dopri8
LIMIT(MOST_CHANNELS, 256)   // of a map in the kernels for GPUs
LIMIT(PARAMETER_ROWS, 7)    // biases, weights and biases of norms, skip scalar: what kernels for GPUs mix for a slot
LIMIT(MOST_CLUSTER, 8)      // blocks of a cluster, on chips that have them
LIMIT(CLUSTERS_FROM, 9)     // major compute capability of those chips
LIMIT(LEAST_SHARED, 99)     // KiB, on chips without a line

CHIP(8, 0, 163)
CHIP(8, 7, 163)
CHIP(9, 0, 227)
CHIP(10, 0, 227)
CHIP(10, 3, 227)
CHIP(11, 0, 227)
