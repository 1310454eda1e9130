"""Training on graphs: nodes of one graph that are classified, and series of signals on a graph."""

from .load import load_graph_data
from .models import build_graph_model
from .nodes import NodeTask
from .series import SeriesTask

__all__ = ["NodeTask", "SeriesTask", "build_graph_model", "load_graph_data"]
