"""Exact data of solvers and of depth: Butcher tableaus, basis functions of t, and time grids."""
