"""U-LiRA: can an attacker tell an agent that unlearned from one that never saw, example by example?

J. Hayes, I. Shumailov, E. Triantafillou, A. Khalifa, N. Papernot, *Inexact Unlearning Needs More Careful Evaluations to
Avoid a False Sense of Privacy*, 2024, arXiv 2403.01218; after N. Carlini et al., *Membership Inference Attacks From
First Principles*, IEEE S&P 2022.

Shadow runs of other seeds, of agent and of minibatches, live through the recorded stream: N saw the task and were
asked to unlearn it, N never saw it. For each of the task's training examples a Gaussian is fitted to the log odds of
its label under either kind, and a run is scored by the summed log ratio of the two. Pairs of a run of either kind are
compared, each by Gaussians of all the others: leaving out single runs would let equal kinds look different, the wrong
way round. For an agent that unlearns exactly, both kinds are the same but for the seeds, and the area under the ROC
curve is 1/2; for one that does nothing it is near 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clenv.running.checkpoint import finite

Values = NDArray[np.float64]
_RISKY = 5  # examples named
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Likelihood:
    """What the attack found out about one request.

    Attributes:
        step: Of the request.
        task: Removed task.
        through: What the attacker looks at: the agent's own answers, or a probe on its features.
        shadows: Runs of either kind, N.
        auc: Area under the ROC curve: share of pairs in which the run that saw the task has the higher score.
        half: Half of the 95 % interval that an attacker without knowledge would have, by chance.
        tpr: True-positive rates at false-positive rates of 1 % and 5 %; with N runs no better known than 1 / N.
        epsilon: Lower bound, at 95 %, of the epsilon of an (epsilon, 0)-indistinguishability (Clopper and Pearson).
        score: Log ratio of the audited run; above 0: it is taken for one that saw the task.
        at_risk: Rows of the training examples that tell most, the most telling first.
    """

    step: int
    task: str
    through: str
    shadows: int
    auc: float
    half: float
    tpr: Mapping[str, float]
    epsilon: float
    score: float
    at_risk: tuple[int, ...]

    @property
    def leaks(self) -> bool:
        """Whether the area is above what chance gives."""
        return self.auc > 0.5 + self.half

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Likelihood:
        """Return what `to_plain` wrote."""
        numbers = {name: math.nan if plain[name] is None else plain[name] for name in ("auc", "epsilon", "score")}
        return cls(**{**plain, **numbers, "at_risk": tuple(plain["at_risk"])})


def log_odds(outputs: Tensor, targets: Tensor) -> Values:
    """Return ``log p / (1 - p)`` of each label, shape ``(n,)``.

    Args:
        outputs: Logits, shape ``(n, classes)``.
        targets: int64 ``(n,)``.
    """
    logs = F.log_softmax(outputs.detach().cpu().double(), 1)
    own = logs.gather(1, targets.cpu()[:, None])[:, 0]
    others = logs.scatter(1, targets.cpu()[:, None], -math.inf).logsumexp(1)
    odds: Values = (own - others).clamp(-30, 30).numpy()
    return odds


def attack(saw: Values, never: Values, audited: Values) -> dict[str, Any]:
    """Return what an attacker achieves, as fields of `Likelihood`.

    Args:
        saw: Log odds of each run that saw the task and unlearned it, shape ``(N, n)``.
        never: Of each run that never saw it, shape ``(N, n)``.
        audited: Of the audited run, shape ``(n,)``.
    """
    n = len(saw)
    pairs = np.zeros((2, n, n))
    told = np.zeros((2, saw.shape[1]))  # summed log ratios of each example, by kind
    for i, j in product(range(n), repeat=2):
        others = np.delete(saw, i, 0), np.delete(never, j, 0)
        for kind, row in enumerate((saw[i], never[j])):
            ratio = _ratio(row, *others)
            pairs[kind, i, j] = ratio.sum()
            told[kind] += ratio
    scores = pairs[0].mean(1), pairs[1].mean(0)
    return {
        "auc": float(((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])).mean()),
        "half": 1.96 * math.sqrt((2 * n + 1) / (12 * n * n)),
        "tpr": {f"{rate:.0%}": _rate_at(*scores, rate) for rate in (0.01, 0.05)},
        "epsilon": _epsilon(int((scores[0] > 0).sum()), int((scores[1] > 0).sum()), n),
        "score": float(_ratio(audited, saw, never).sum()),
        "at_risk": tuple((told[1] - told[0]).argsort(kind="stable")[:_RISKY].tolist()),
        "shadows": n,
    }


def _ratio(row: Values, saw: Values, never: Values) -> Values:
    """Return the log ratio of the likelihoods of each example's log odds under Gaussians of either kind."""
    kinds = []
    for runs in (saw, never):
        mean, deviation = runs.mean(0), runs.std(0, ddof=1)
        deviation = np.maximum(deviation, 0.1 * deviation.mean() + 1e-3)  # a few runs tell little of a small deviation
        kinds.append(-np.log(deviation) - 0.5 * ((row - mean) / deviation) ** 2)
    ratio: Values = kinds[0] - kinds[1]
    return ratio


def _rate_at(inside: Values, outside: Values, rate: float) -> float:
    """Return the largest true-positive rate among thresholds with at most this false-positive rate."""
    allowed = math.floor(rate * len(outside))
    threshold = np.sort(outside)[::-1][allowed] if allowed < len(outside) else -math.inf
    return float((inside > threshold).mean())


def _epsilon(hits: int, alarms: int, n: int) -> float:
    """Return the lower bound of epsilon for so many true and false positives, of ``n`` each."""
    from scipy.stats import beta

    tail = (1 - _CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if alarms == n else float(beta.ppf(1 - tail, alarms + 1, n - alarms))
    return max(0.0, math.log(low / high)) if low > 0 else 0.0
