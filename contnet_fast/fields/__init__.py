"""Vector fields dx/dt = R(x, theta(t)) that have fused kernels: a folder for each."""
