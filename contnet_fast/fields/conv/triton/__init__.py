"""Triton kernels of the convolutional field and the host code that plans and launches them.

Nothing here knows autograd or dispatch. Importing a module of kernels imports triton, so ``contnet_fast`` does so at the
first use alone.
"""
