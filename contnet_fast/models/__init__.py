"""Models: ContinuousNet, its wide variant, the residual baselines of the same sizes, and networks on graphs."""

from .continuousnet import ContinuousNet, WideContinuousNet
from .graphs import CGNN, GCDEGRU, GCGRU, GCN, GDE, GRAND, WCGNN
from .resnet import PreActResNet, WideResNet

__all__ = [
    "CGNN",
    "GCDEGRU",
    "GCGRU",
    "GCN",
    "GDE",
    "GRAND",
    "WCGNN",
    "ContinuousNet",
    "PreActResNet",
    "WideContinuousNet",
    "WideResNet",
]
