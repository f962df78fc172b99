"""Training: configuration, data on the device, optimiser, checkpoint, progress, and one readable loop."""

from sbiflow.training.config import TrainConfig
from sbiflow.training.loop import train

__all__ = ["TrainConfig", "train"]
