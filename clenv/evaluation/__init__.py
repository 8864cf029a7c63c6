"""What is measured on held-out data."""

from clenv.evaluation.retention import Evaluation, Retention

__all__ = ["Evaluation", "Retention"]
