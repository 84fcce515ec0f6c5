"""Training of one tenant: a job in, the best tensors out, resumable at every checkpoint."""

from compiler.train.job import Evaluation, Job, TensorBatch, Trained
from compiler.train.loop import train
from compiler.train.loss import causal_lm_loss, classification_loss, linear_cross_entropy
from compiler.train.progress import Reporter, Silent, Status, report

__all__ = [
    "Evaluation",
    "Job",
    "Reporter",
    "Silent",
    "Status",
    "TensorBatch",
    "Trained",
    "causal_lm_loss",
    "classification_loss",
    "linear_cross_entropy",
    "report",
    "train",
]
