"""Triton kernels, their tile tables and the host code that launches them. Nothing here knows autograd or dispatch.

Importing a module of this package imports triton; ``contnet_fast`` itself does so at the first use alone.
"""
