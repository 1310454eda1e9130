"""Checks for users' own machines: every backend against the float64 reference, and what the domain promises."""
