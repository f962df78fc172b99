"""Training: configuration, data on the device, optimiser, checkpoint, progress, one readable loop."""

from sbiflow.training.config import TrainConfig
from sbiflow.training.ensemble import Member, default_members, train_ensemble
from sbiflow.training.group import is_rank_zero, rank_zero_first
from sbiflow.training.run import train

__all__ = [
    "Member",
    "TrainConfig",
    "default_members",
    "is_rank_zero",
    "rank_zero_first",
    "train",
    "train_ensemble",
]
