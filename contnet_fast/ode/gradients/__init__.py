"""Gradients of a solve: the continuous adjoint, and exact ones by checkpoints whose steps run again on a tape."""
