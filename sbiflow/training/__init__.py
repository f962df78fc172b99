"""Training: configuration, data on the device, optimiser, checkpoint, progress, one readable loop."""

from sbiflow.training.config import TrainConfig
from sbiflow.training.run import train

__all__ = ["TrainConfig", "train"]
