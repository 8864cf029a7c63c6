"""Avalanche itself: the one door through which it is imported, on a torch without torchvision's operators too.

The import takes seconds, so that other modules come here only when a strategy or a benchmark is made.
"""

from __future__ import annotations

import warnings

from clenv._torchvision import make_torchvision_importable

make_torchvision_importable()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what Avalanche imports in its turn
    from avalanche.benchmarks import CLScenario
    from avalanche.benchmarks.scenarios import DatasetExperience, EagerCLStream
    from avalanche.benchmarks.utils import (
        AvalancheDataset,
        _make_taskaware_tensor_classification_dataset,
        concat_datasets,
        make_avalanche_dataset,
    )
    from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
    from avalanche.benchmarks.utils.data_loader import ReplayDataLoader, TaskBalancedDataLoader
    from avalanche.benchmarks.utils.flat_data import FlatData
    from avalanche.models import MultiTaskModule
    from avalanche.models.packnet import PackNetModel, PackNetModule
    from avalanche.training.plugins import (
        AGEMPlugin,
        EvaluationPlugin,
        EWCPlugin,
        GEMPlugin,
        MASPlugin,
        ReplayPlugin,
        SynapticIntelligencePlugin,
    )
    from avalanche.training.storage_policy import BalancedExemplarsBuffer, ExemplarsBuffer, ReservoirSamplingBuffer
    from avalanche.training.supervised import (
        DER,
        ER_ACE,
        Cumulative,
        CWRStar,
        FromScratchTraining,
        GDumb,
        JointTraining,
        LwF,
        Naive,
        PackNet,
    )
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.utils import ParamData

make_tensor_dataset = _make_taskaware_tensor_classification_dataset
"""Avalanche's own maker of a task-labelled data set from tensors."""


class SilentEvaluator(EvaluationPlugin):
    """Measures nothing and says nothing; Avalanche's own copies the experience at every hook all the same."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it has no loggers
            super().__init__(loggers=[], collect_all=False)

    def _update_metrics_and_loggers(self, strategy: object, callback: str) -> list[object]:
        del strategy, callback
        return []


__all__ = [
    "DER",
    "ER_ACE",
    "AGEMPlugin",
    "AvalancheDataset",
    "BalancedExemplarsBuffer",
    "CLScenario",
    "CWRStar",
    "Cumulative",
    "DatasetExperience",
    "EWCPlugin",
    "EagerCLStream",
    "EvaluationPlugin",
    "ExemplarsBuffer",
    "FlatData",
    "FromScratchTraining",
    "GDumb",
    "GEMPlugin",
    "JointTraining",
    "LwF",
    "MASPlugin",
    "MultiTaskModule",
    "Naive",
    "PackNet",
    "PackNetModel",
    "PackNetModule",
    "ParamData",
    "ReplayDataLoader",
    "ReplayPlugin",
    "ReservoirSamplingBuffer",
    "SilentEvaluator",
    "SupervisedTemplate",
    "SynapticIntelligencePlugin",
    "TaskBalancedDataLoader",
    "TensorDataAttribute",
    "concat_datasets",
    "make_avalanche_dataset",
    "make_tensor_dataset",
]
