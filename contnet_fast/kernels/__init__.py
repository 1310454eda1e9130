"""Triton kernels, their tile tables and the host code that launches them; the build of the CUDA C++ kernels.

Nothing here knows autograd or dispatch. Importing a module of Triton kernels imports triton; ``contnet_fast`` itself does
so at the first use alone.
"""
