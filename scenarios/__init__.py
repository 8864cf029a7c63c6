"""The task families, one file a family. Ids are registered here; factories are imported when they are used."""

from typing import Any

from clenv.registry import register

if __name__ != "clenv.scenarios":
    raise ImportError(f"import this package as clenv.scenarios, not as {__name__}")

_RECURRING = {"alpha": 0.9, "round_length": 10, "horizon": 3000}
_SEED_TASK = {"schedule": ("class-1", "class-0"), "round_length": 9, "batch_size": 100}
_BLIND = {"paradigm": "domain", "task_labels": "hidden", "announce_switches": False}
_FEW_SHOTS = {"alpha": 0.0, "round_length": 3, "batch_size": 5, "horizon": 3000, "pretrain_tasks": 168}
_LINE = _RECURRING | {"paradigm": "domain", "batch_size": 20}
_VON_OSWALD = {  # x + 3, 2x^2 - 1, (x - 3)^3
    "coefficients": ((1, 3), (2, 0, -1), (1, -9, 27, -27)),
    "intervals": ((-4, -2), (-1, 1), (2, 4)),
    "noise": (0.05, 0.05, 0.05),
    "points": 100,
    "test_points": 50,
    "held_out": "true",
}
_PUBLISHED = {"alpha": 0.9, "switch": "any", "sampling": "balanced", "batch_size": 25, "horizon": 10_000}
_OMNIGLOT = {  # Caccia et al., NeurIPS 2020
    "data": "omniglot",
    "n_way": 10,
    "image": True,
    "batch_size": 50,
    "modes": {"omniglot": [0.5, "omniglot"], "mnist": [0.25, "mnist"], "fashion-mnist": [0.25, "fashion-mnist"]},
}
_TIERED = {
    "data": "tiered-imagenet",
    "image": True,
    "horizon": 20_000,
    "modes": {
        "train": [0.25, list(range(351))],
        "late train": [0.25, list(range(200, 351))],
        "validation": [0.5, list(range(351, 448))],
    },
}


def _after_visits(requests: dict[int, list[int]]) -> dict[str, Any]:
    """Return a written script: the tasks to unlearn as each visit ends, both counted from 1 as in the papers."""
    return {
        "policy": "Script",
        "commands": [
            {"action": "unlearn", "tasks": [task - 1 for task in tasks], "visit": visit - 1}
            for visit, tasks in requests.items()
        ],
    }


_AMNESIAC = {  # the published request schedules: visits in order, each task once, deadline 4
    5: _after_visits({2: [1], 4: [2], 5: [5]}),
    20: _after_visits(
        {2: [1], 4: [2], 5: [5], 7: [6], 9: [7], 10: [10], 12: [11], 14: [12], 15: [15], 17: [16], 19: [17], 20: [20]}
    ),
}
_CLPU = {"batch_size": 32, "epochs": 10, "requests": {"policy": "CLPU"}}  # of each task


def _amnesiac(tasks: int, epochs: int = 2) -> dict[str, Any]:
    return {
        "batch_size": 64,
        "epochs": epochs,
        "schedule": list(range(tasks)),
        "requests": _AMNESIAC[tasks],
        "deadline": 4,
    }


_P = "clenv.scenarios.protocols:"
_SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "TwoGaussians": ("clenv.scenarios.two_gaussians:two_gaussians", _SEED_TASK | _BLIND),
    "ManyGaussians": ("clenv.scenarios.two_gaussians:many_gaussians", _RECURRING),
    # Protocols, of the data set that is named, or of any: data=...
    "Split": (_P + "split", _RECURRING),
    "Permuted": (_P + "permuted", _RECURRING),
    "Rotated": (_P + "rotated", _RECURRING),
    "Scrambled": (_P + "scrambled", _FEW_SHOTS | _BLIND | {"paradigm": "class"}),
    "Domains": (_P + "domains", _RECURRING),
    "SplitDigits": (_P + "split", _RECURRING | {"data": "digits"}),
    "PermutedDigits": (_P + "permuted", _RECURRING | {"data": "digits"}),
    "RotatedDigits": (_P + "rotated", _RECURRING | {"data": "digits"}),
    "ScrambledDigits": (_P + "scrambled", _FEW_SHOTS | _BLIND | {"paradigm": "class", "data": "digits"}),
    "SplitMNIST": (_P + "split", _RECURRING | {"data": "mnist"}),
    "PermutedMNIST": (_P + "permuted", _RECURRING | {"data": "mnist"}),
    "RotatedMNIST": (_P + "rotated", _RECURRING | {"data": "mnist"}),
    "SplitFashionMNIST": (_P + "split", _RECURRING | {"data": "fashion-mnist"}),
    "PermutedFashionMNIST": (_P + "permuted", _RECURRING | {"data": "fashion-mnist"}),
    "RotatedFashionMNIST": (_P + "rotated", _RECURRING | {"data": "fashion-mnist"}),
    "SplitCIFAR10": (_P + "split", _RECURRING | {"data": "cifar10"}),
    "SplitCIFAR100": (_P + "split", _RECURRING | {"data": "cifar100", "classes_per_task": 5, "horizon": 10_000}),
    "CORe50": (
        _P + "domains",
        _RECURRING | {"paradigm": "domain", "data": [f"core50-s{session}" for session in (1, 2, 4, 5, 6, 8, 9, 11)]},
    ),
    "SplitTinyImageNet": (
        _P + "split",
        _RECURRING | {"data": "tiny-imagenet", "classes_per_task": 10, "horizon": 10_000},
    ),
    "ToyPolynomial": ("clenv.scenarios.toy_regression:toy_polynomial", _LINE),
    "ToyThreePolynomials": ("clenv.scenarios.toy_regression:toy_polynomial", _LINE | _VON_OSWALD),
    "ToyRBF": ("clenv.scenarios.toy_regression:toy_basis", _LINE | {"basis": "rbf"}),
    "ToySigmoid": ("clenv.scenarios.toy_regression:toy_basis", _LINE | {"basis": "sigmoid"}),
    "ToyFourier": ("clenv.scenarios.toy_regression:toy_basis", _LINE | {"basis": "fourier"}),
    "OsakaOmniglot": ("clenv.scenarios.osaka_episodic:osaka_episodic", _PUBLISHED | _BLIND | _OMNIGLOT),
    "OsakaTieredImageNet": ("clenv.scenarios.osaka_episodic:osaka_episodic", _PUBLISHED | _BLIND | _TIERED),
    "OsakaEpisodic": ("clenv.scenarios.osaka_episodic:osaka_episodic", _PUBLISHED | _BLIND),
}
for _name, _data in (("", "digits"), ("Digits", "digits"), ("MNIST", "mnist"), ("FashionMNIST", "fashion-mnist")):
    for _protocol in ("Permuted", "Rotated"):
        _path, _epochs = _P + _protocol.lower(), 20 if _name == "Digits" else 2  # there are few digits
        _SCENARIOS[f"CLPU{_protocol}{_name}"] = (_path, {"data": _data, "n_tasks": 5, **_CLPU})
        for _tasks in _AMNESIAC:
            _SCENARIOS[f"AmnesiacHAT{_tasks}{_protocol}{_name}"] = (
                _path,
                {"data": _data, "n_tasks": _tasks, **_amnesiac(_tasks, _epochs)},
            )
for _name, _tasks, _classes in (("", 5, 2), ("CIFAR10", 5, 2), ("CIFAR100", 20, 5)):
    _data = _name.lower() or "digits"
    _fifth, _part = ({"data": _data, "classes_per_task": count} for count in (_classes * _tasks // 5, _classes))
    _SCENARIOS[f"CLPUSplit{_name}"] = (_P + "split", _fifth | _CLPU)
    _SCENARIOS[f"AmnesiacHAT{_tasks}Split{_name}"] = (_P + "split", _part | _amnesiac(_tasks))
for _name, (_path, _defaults) in _SCENARIOS.items():
    register(f"clenv/{_name}-v0", _path, **_defaults)

# What users make tasks of their own data with; after the registrations, which need none of it.
from .frozen import features  # noqa: E402
from .own import (  # noqa: E402
    from_arrays,
    from_dataset,
    from_folder,
    from_frame,
    from_hf,
    permuted,
    rotated,
    scrambled,
    split,
)
from .protocols import domains  # noqa: E402

__all__ = [
    "domains",
    "features",
    "from_arrays",
    "from_dataset",
    "from_folder",
    "from_frame",
    "from_hf",
    "permuted",
    "rotated",
    "scrambled",
    "split",
]
