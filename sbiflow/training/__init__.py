"""Training: configuration, data on the device, optimiser, checkpoint, progress, one readable loop; distillation."""

from sbiflow.training.config import TrainConfig
from sbiflow.training.distance import Distillation, DistillationWarning
from sbiflow.training.distillation import distill
from sbiflow.training.ensemble import Member, default_members, train_ensemble
from sbiflow.training.group import is_rank_zero, rank_zero_first
from sbiflow.training.run import train

__all__ = [
    "Distillation",
    "DistillationWarning",
    "Member",
    "TrainConfig",
    "default_members",
    "distill",
    "is_rank_zero",
    "rank_zero_first",
    "train",
    "train_ensemble",
]
