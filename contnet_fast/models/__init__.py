"""Models: ContinuousNet, its wide variant, and the residual baselines of the same sizes."""

from .continuousnet import ContinuousNet, WideContinuousNet
from .resnet import PreActResNet, WideResNet

__all__ = ["ContinuousNet", "PreActResNet", "WideContinuousNet", "WideResNet"]
