"""Networks on graphs, continuous in depth, and the graph convolutional network to compare them with."""

from .cgnn import CGNN, WCGNN
from .gcn import GCN
from .gde import GDE
from .grand import GRAND
from .hybrid import GCDEGRU, GCGRU

__all__ = ["CGNN", "GCDEGRU", "GCGRU", "GCN", "GDE", "GRAND", "WCGNN"]
