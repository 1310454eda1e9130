"""What Triton kernels of every field share: launching, tiles, and the combination of Runge-Kutta stages."""
