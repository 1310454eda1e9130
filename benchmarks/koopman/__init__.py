"""Koopman analysis of training: what recording costs."""
