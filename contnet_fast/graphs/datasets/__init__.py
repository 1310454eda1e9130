"""Graphs with classes of nodes, and series and trajectories on graphs; what is read from files comes by path."""

from .block_model import block_model
from .irregular import SeriesData, flow, irregular_series
from .karate import karate_club
from .nearest import digits_neighbours, neighbour_graph, neighbours, neighbours_of_file
from .node_data import NodeData, components, copies
from .particles import Trajectories, coupled_particles
from .planetoid import planetoid

__all__ = [
    "NodeData",
    "SeriesData",
    "Trajectories",
    "block_model",
    "components",
    "copies",
    "coupled_particles",
    "digits_neighbours",
    "flow",
    "irregular_series",
    "karate_club",
    "neighbour_graph",
    "neighbours",
    "neighbours_of_file",
    "planetoid",
]
