"""The convolutional field of arXiv 2008.02389: its definition, its plain PyTorch reference, its kernels."""
