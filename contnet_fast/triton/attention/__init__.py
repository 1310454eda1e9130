"""Attention along the edges of a graph in Triton: kernels, the host code that launches them, what ships.

Importing a module of it imports triton, so ``contnet_fast`` does so at the first use alone.
"""
