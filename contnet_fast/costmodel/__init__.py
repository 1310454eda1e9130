"""Predicted time of kernels: operations and bytes of each launch, rates of devices, and the order that ``auto`` takes."""
