"""How far an agent that unlearned is from its reference: distances between features, between parameters, gap closed.

Pure functions. Features are one row a sample, the whole set at once: nothing here is a mean of means of minibatches.
Everything is computed in float64. What is undefined is nan, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clenv.errors import DataError

_LEAST_CKA = 4  # samples: the unbiased HSIC divides by n - 3


@dataclass(frozen=True)
class FeatureDistances:
    """Distances between two sets of features of the same samples, each a mean over the samples.

    Attributes:
        samples: How many.
        jsd: Jensen-Shannon divergence of the softmaxed features in nats, 0 to ln 2.
        js_distance: Its root a sample, which is a metric.
        temperature: What both features were divided by before the softmax: the root mean square of the reference's.
        cosine: One minus the cosine of the angle, 0 to 2, over the pairs without a zero vector.
        zero_vectors: Pairs in which one vector is zero (dead units), for which the cosine is undefined.
        euclidean: Euclidean distance divided by the root of the width, which makes it independent of the width.
        euclidean_raw: Euclidean distance.
        manhattan: Sum of absolute differences divided by the width.
        manhattan_raw: Sum of absolute differences.
        cka: One minus the debiased centred kernel alignment: 0 for features that are equal up to rotation and scale,
            1 on average for independent ones (a little above by chance). The only distance here that means anything
            between models of different seeds, whose units are permuted.
    """

    samples: int
    jsd: float
    js_distance: float
    temperature: float
    cosine: float
    zero_vectors: int
    euclidean: float
    euclidean_raw: float
    manhattan: float
    manhattan_raw: float
    cka: float


def feature_distances(features: Tensor, reference: Tensor) -> FeatureDistances:
    """Compare features of the same samples, row by row and (CKA) as a whole.

    Args:
        features: Of the model that unlearned, shape ``(n, d)``; more dimensions are flattened.
        reference: Of its reference, the same shape.

    Raises:
        DataError: The shapes differ, there is no sample, or a value is not finite.
    """
    f, g = _rows(features, reference)
    temperature = root_mean_square(g)
    divergence = _softmax_divergence(f, g, temperature)
    cosine, zeros = cosine_distance(f, g)
    difference, width = f - g, f.shape[1]
    euclidean = difference.norm(dim=1).mean().item()
    manhattan = difference.abs().sum(1).mean().item()
    return FeatureDistances(
        samples=len(f),
        jsd=divergence.mean().item(),
        js_distance=divergence.sqrt().mean().item(),
        temperature=temperature,
        cosine=cosine,
        zero_vectors=zeros,
        euclidean=euclidean / math.sqrt(width),
        euclidean_raw=euclidean,
        manhattan=manhattan / width,
        manhattan_raw=manhattan,
        cka=1 - cka(f, g),
    )


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 1000) -> Tensor:
    """Return what a pure function says about many inputs, a batch at a time, in one float64 tensor on the CPU.

    Args:
        function: E.g. an agent's features; maps ``(b, *input_shape)`` to ``(b, ...)``.
        x: Inputs, shape ``(n, *input_shape)``.
        batch_size: Inputs a call; the last call may hold fewer.

    Returns:
        Shape ``(n, d)``; further dimensions are flattened.
    """
    parts = [x[start : start + batch_size] for start in range(0, len(x), batch_size)]
    with torch.no_grad():
        return torch.cat([function(part).flatten(1).to("cpu", torch.float64) for part in parts])


def _rows(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as finite float64 ``(n, d)``."""
    if features.shape != reference.shape or features.dim() < 2 or not features.numel():
        raise DataError(
            f"features of shape {tuple(features.shape)} and {tuple(reference.shape)}: expected one shape (n, d), "
            "n >= 1, the same samples in both"
        )
    pair = [values.detach().to("cpu", torch.float64).flatten(1) for values in (features, reference)]
    for name, values in zip(("features", "reference"), pair, strict=True):
        if not bool(torch.isfinite(values).all()):
            raise DataError(f"the {name} hold NaN or infinity: expected finite numbers")
    return pair[0], pair[1]


def root_mean_square(values: Tensor) -> float:
    """Return the root of the mean square over all entries: the scale of features."""
    return values.to(torch.float64).square().mean().sqrt().item()


def jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence between two softmaxed sets of rows, a number a row, in nats, 0 to ln 2.

    With ``p``, ``q`` the two softmaxes and ``d = log q - log p``, ``log(p / m) = -log((1 + e^d) / 2)``. In this form
    equal rows give exactly 0, the result is symmetric in bits, and nothing overflows.

    Args:
        logits: Shape ``(n, d)``.
        others: The same shape.
    """
    log_p, log_q = (F.log_softmax(values.to(torch.float64), 1) for values in (logits, others))
    p, q, d = log_p.exp(), log_q.exp(), log_q - log_p
    common = torch.log1p(torch.expm1(-d.abs()) / 2)
    total = (p * d.relu() + q * (-d).relu() + (p + q) * common).sum(1)
    return (-total / 2).clamp(0, math.log(2))


def _softmax_divergence(f: Tensor, g: Tensor, temperature: float) -> Tensor:
    """Return `jensen_shannon` of features at a temperature; a reference without scale leaves it undefined."""
    if temperature == 0 and bool(f.any()):
        return torch.full((len(f),), math.nan, dtype=torch.float64)
    scale = temperature or 1.0  # all features zero: uniform at any temperature
    return jensen_shannon(f / scale, g / scale)


def cosine_distance(f: Tensor, g: Tensor) -> tuple[float, int]:
    """Return the mean of ``1 - cos`` over pairs of rows without a zero vector, and how many pairs have one."""
    lengths = torch.stack([f.norm(dim=1), g.norm(dim=1)])
    defined = (lengths > 0).all(0)
    f, g = f[defined] / lengths[0, defined, None], g[defined] / lengths[1, defined, None]
    zeros = len(defined) - len(f)
    # |f - g|^2 / 2 for unit vectors; exactly 0 for equal ones
    return ((f - g).square().sum(1) / 2).mean().item() if len(f) else math.nan, zeros


def cka(f: Tensor, g: Tensor) -> float:
    """Return the debiased linear centred kernel alignment of two sets of features of the same samples.

    Kornblith et al., ICML 2019, with the unbiased estimator of HSIC of Song et al. (JMLR 2012, equation 5): the biased
    one is near 1 for any two sets of features wider than the number of samples. nan for fewer than 4 samples and
    for features that do not vary.

    Args:
        f: Shape ``(n, d)``.
        g: Shape ``(n, e)``.
    """
    if len(f) < _LEAST_CKA:
        return math.nan
    f, g = f - f.mean(0), g - g.mean(0)
    own = unbiased_hsic(f, f), unbiased_hsic(g, g)
    if min(own) <= 0:
        return math.nan
    return unbiased_hsic(f, g) / math.sqrt(own[0] * own[1])


def unbiased_hsic(f: Tensor, g: Tensor) -> float:
    """Return the unbiased Hilbert-Schmidt independence criterion under linear kernels, without any n by n matrix.

    With ``K = F F'`` and ``L = G G'`` without their diagonals:
    ``[tr(K L) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 (1'K L 1) / (n-2)] / (n (n-3))``.
    """
    n = len(f)
    diagonals = f.square().sum(1), g.square().sum(1)
    trace = (f.T @ g).square().sum() - diagonals[0] @ diagonals[1]
    row_sums = f @ f.sum(0) - diagonals[0], g @ g.sum(0) - diagonals[1]
    means = row_sums[0].sum() * row_sums[1].sum() / ((n - 1) * (n - 2))
    return ((trace + means - 2 * (row_sums[0] @ row_sums[1]) / (n - 2)) / (n * (n - 3))).item()


@dataclass(frozen=True)
class ParameterDistance:
    """How far the parameters of one state are from those of another; the same seed only.

    Attributes:
        relative: ``|theta - theta_ref| / |theta_ref - theta_0|``, over the entries that all three states have; nan if
            there are none, or the reference never moved.
        absolute: ``|theta - theta_ref|`` over the entries that both states have.
        identical: Share of the entries of either state that are the same bits in both.
        entries: How many entries either state has.
        unmatched: How many of them only one of the two has.
    """

    relative: float
    absolute: float
    identical: float
    entries: int
    unmatched: int


def parameter_distance(
    state: Mapping[str, Any], reference: Mapping[str, Any], initial: Mapping[str, Any]
) -> ParameterDistance:
    """Compare the parameters in two states of an agent, entry by entry.

    Parameters are the `torch.nn.Parameter` of a state; of an agent that has none, all its floating-point tensors.

    Args:
        state: ``state_dict()`` of the agent that unlearned.
        reference: That of its reference.
        initial: That of the agent before the stream, with the same seed.
    """
    mine, theirs = parameters(state), parameters(reference)
    both = [path for path, values in mine.items() if path in theirs and theirs[path].shape == values.shape]
    first = parameters(initial)
    moved = [path for path in both if path in first and first[path].shape == mine[path].shape]
    same = sum(int((_bits(mine[path]) == _bits(theirs[path])).sum()) for path in both)
    matched = sum(mine[path].numel() for path in both)
    entries = sum(values.numel() for group in (mine, theirs) for values in group.values()) - matched
    scale = _norm(theirs, first, moved)
    return ParameterDistance(
        relative=_norm(mine, theirs, moved) / scale if scale else math.nan,
        absolute=_norm(mine, theirs, both),
        identical=same / entries if entries else math.nan,
        entries=entries,
        unmatched=entries - matched,
    )


def parameters(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the parameters in a state by their path: all `torch.nn.Parameter`, or else all floating-point tensors."""
    found = {path: values for path, values in walk(state) if isinstance(values, Tensor) and values.is_floating_point()}
    declared = {path: values for path, values in found.items() if isinstance(values, nn.Parameter)}
    return {path: values.detach().cpu() for path, values in (declared or found).items()}


def walk(state: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every leaf of nested plain containers with its path, e.g. ``("['heads'][2][0]", tensor)``, in order."""
    if isinstance(state, Mapping):
        for key, item in state.items():
            yield from walk(item, f"{path}[{key!r}]")
    elif isinstance(state, list | tuple):
        for number, item in enumerate(state):
            yield from walk(item, f"{path}[{number}]")
    else:
        yield path, state


def _bits(values: Tensor) -> Tensor:
    """Return the values as whole numbers of the same bits, so that -0 is not 0 and nan is itself."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.contiguous().view(kinds[values.element_size()])


def _norm(a: Mapping[str, Tensor], b: Mapping[str, Tensor], paths: list[str]) -> float:
    return math.sqrt(sum((a[path].double() - b[path].double()).square().sum().item() for path in paths))


def gap_closed(distance: float, full: float) -> float:
    """Return the share of the gap between never having unlearned and the reference that unlearning closed.

    Args:
        distance: Of the agent that unlearned, to the reference.
        full: Of the agent that did not, to the same reference, by the same measure.

    Returns:
        1: equal to the reference; 0: no better than doing nothing; below 0: worse. nan if there is no gap.
    """
    return 1 - distance / full if full > 0 else math.nan
