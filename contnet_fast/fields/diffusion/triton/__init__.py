"""Triton kernels of the diffusion field and the host code that plans and launches them.

Importing a module of kernels imports triton, so ``contnet_fast`` does so at the first use alone.
"""
