"""Graphs as compressed sparse rows: what continuous graph networks multiply with."""

from .convert import edges_of
from .graph import Graph

__all__ = ["Graph", "edges_of"]
