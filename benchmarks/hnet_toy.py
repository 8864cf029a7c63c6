"""The toy regression of von Oswald et al., from the draws of their code: the errors that it gives, and ours.

`python benchmarks/hnet_toy.py [ROW ...]` learns three curves one after the other, 4001 minibatches of 32 each, and
prints the test errors right after each curve and after all three, with those that the authors' code gives (their
published ones are of the first row). Data, minibatches, initial weights and embeddings are drawn as there, in the same
order: the errors right after each curve agree to four decimals or so; over 12003 steps rounding grows to a few
thousandths, or a hundredth of an error above 1. Rows that the agent has no option for, since they serve comparison
only, are subclasses here: the authors' code makes the targets anew at each task, the agent (``targets stored``) keeps
them.

von Oswald, Henning, Grewe, Sacramento, *Continual learning with hypernetworks*, ICLR 2020, and its code ``hypercl``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clenv
from clenv.agents.hypernetworks.hnet import HNET, output_penalty

STEPS = 4001
ROWS = 32
PUBLISHED: Mapping[str, Any] = {
    "hidden": (10, 10),
    "activation": "sigmoid",
    "learning_rate": 1e-2,
    "embedding": 2,
    "generator_hidden": (10, 10),
    "generator_activation": "sigmoid",
    "chunk": None,
    "init": "xavier",
    "subset": None,
    "fresh_moments": True,
    "beta": 0.005,
}
CURVES = ((-4, -2, (1, 3)), (-1, 1, (2, 0, -1)), (2, 4, (1, -9, 27, -27)))  # x + 3, 2x^2 - 1, (x - 3)^3

Errors = tuple[float, float, float]


class RenewingHNET(HNET):
    """Makes all targets anew whenever a task begins, as the authors' code does; the agent keeps them as they were."""

    def enter(self, task: int | None) -> None:
        """Make the targets anew."""
        if task != self.running:
            self._consolidate()
            for known in [known for known, slot in self.slots.items() if slot["steps"]]:
                self.slots[known]["target"] = self.networks([known])[0].detach()
        super().enter(task)


class ChangeHNET(HNET):
    """Holds what the generator makes now, not what it made when a task ended: it resists, and forgets all the same."""

    def _penalty(self, tasks: Sequence[int], change: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...], float]:
        """Return ``beta / K sum_k ||h(e_k; Theta) - h(e_k; Theta + dTheta)||^2``, its gradient, and no drift."""
        e = torch.stack([self.slots[task]["e"].detach() for task in tasks])
        ahead = [p + d for p, d in zip(self.theta, change, strict=True)]
        W = self._hypernetwork.weights(self.theta, e)
        R = output_penalty(self._hypernetwork.weights(ahead, e), W, self._hyper.beta)
        return R.item(), torch.autograd.grad(R, self.theta), 0.0


class ElasticHNET(HNET):
    """Holds Theta by elastic weight consolidation (Kirkpatrick et al., PNAS 2017): ``beta`` is lambda."""

    anchors: list[tuple[list[Tensor], list[Tensor]]]
    """For each past task, the diagonal of the empirical Fisher information, and Theta as the task ended."""

    def estimate(self, x: Tensor, y: Tensor) -> None:
        """Anchor Theta, with the squared gradients of single examples of the task that ends."""
        fisher = [torch.zeros_like(p) for p in self.theta]
        for n in range(len(x)):
            loss = (self.forward(x[n : n + 1]) - y[n]).square().sum() / 2
            torch._foreach_add_(fisher, [g.square() / len(x) for g in torch.autograd.grad(loss, self.theta)])
        self.anchors = [*getattr(self, "anchors", []), (fisher, [p.detach().clone() for p in self.theta])]

    def _penalty(self, tasks: Sequence[int], change: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...], float]:
        """Return ``lambda / 2 sum_k F_k (Theta - Theta_k)^2``, its gradient, and no drift."""
        del tasks, change
        gradients = [torch.zeros_like(p) for p in self.theta]
        for fisher, start in self.anchors:
            for g, F_k, p, then in zip(gradients, fisher, self.theta, start, strict=True):
                g.addcmul_(F_k, p.detach() - then, value=self._hyper.beta)
        return 0.0, tuple(gradients), 0.0


class Row(NamedTuple):
    """A setting, and the errors of the authors' code: after all curves, and right after each where we know them."""

    changes: Mapping[str, Any]
    final: Errors
    during: Errors | None = None
    cls: type[HNET] = RenewingHNET
    seed: int = 42


TABLE: Mapping[str, Row] = {
    "beta = 0.005": Row({}, (0.00421, 0.00238, 0.00611), (0.00375, 0.00281, 0.00611)),
    "beta = 0.005, seed 1": Row({}, (0.00078, 0.00137, 0.00034), seed=1),
    "beta = 0.005, seed 2": Row({}, (0.00245, 0.00192, 0.00598), seed=2),
    "beta = 0": Row({"beta": 0.0}, (12.64, 7.27, 0.00054), (0.00375, 0.00132, 0.00054)),
    "from scratch": Row({"beta": 0.0}, (7.84, 6.25, 0.00246), (0.00375, 0.00222, 0.00246)),
    "beta = 0.05": Row({"beta": 0.05}, (0.00151, 0.00335, 0.02723), (0.00375, 0.00251, 0.02723)),
    "beta = 0.5": Row({"beta": 0.5}, (0.00267, 0.00229, 0.00107), (0.00375, 0.00214, 0.00107)),
    "gradient lookahead": Row({"lookahead": "gradient"}, (0.00301, 0.00334, 0.02394), (0.00375, 0.00292, 0.02394)),
    "no lookahead": Row({"lookahead": "none"}, (0.00119, 0.00355, 0.02798), (0.00375, 0.00295, 0.02798)),
    "no lookahead, seed 1": Row({"lookahead": "none"}, (0.00057, 0.00179, 0.00041), seed=1),
    "no lookahead, seed 2": Row({"lookahead": "none"}, (0.00366, 0.00576, 0.00577), seed=2),
    "penalty on the change": Row({}, (5.97, 5.47, 0.00057), (0.00375, 0.00132, 0.00057), ChangeHNET),
    "EWC on Theta": Row({"beta": 1000.0}, (2.63, 7.11, 0.0298), (0.00375, 0.00128, 0.02975), ElasticHNET),
    "targets stored": Row({}, (0.00421, 0.00238, 0.00611), (0.00375, 0.00281, 0.00611), HNET),
    "targets stored, seed 1": Row({}, (0.00078, 0.00137, 0.00034), None, HNET, 1),
    "targets stored, seed 2": Row({}, (0.00245, 0.00192, 0.00598), None, HNET, 2),
}


class Curve(NamedTuple):
    """Training and test points of a curve, shapes ``(n, 1)``."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def curve(low: float, high: float, powers: Sequence[float]) -> Curve:
    """Draw 100 points with noise, for every curve from the same generator, and 50 equidistant ones without."""
    draws = np.random.RandomState(42)  # the authors' draws
    x, test_x = draws.uniform(low, high, (100, 1)), np.linspace(low, high, 50)[:, None]
    y = np.polyval(powers, x) + draws.normal(0, 0.05, (100, 1))
    arrays = x, y, test_x, np.polyval(powers, test_x)
    return Curve(*(torch.from_numpy(array).float() for array in arrays))


class Draws:
    """What the authors' code draws, in its order: initial networks, and the order of minibatches."""

    def __init__(self, seed: int) -> None:
        self._shuffling = np.random.RandomState(seed)
        self._weights = torch.Generator().manual_seed(seed)

    def begin(self, agent: HNET) -> None:
        """Give an agent new weights and embeddings."""
        sizes = [math.prod(shape) for shape in agent._target.shapes]  # noqa: SLF001
        shapes = [(10, 2), (10, 10), *((size, 10) for size in sizes)]
        for rows, columns in shapes:  # other weights, biases and embeddings are drawn first, and given up
            torch.empty(rows, columns).uniform_(generator=self._weights)
            torch.empty(rows).uniform_(generator=self._weights)
        self._embeddings()
        matrices = [nn.init.xavier_uniform_(torch.empty(shape), generator=self._weights) for shape in shapes]
        with torch.no_grad():
            weights = [*matrices[:2], torch.cat(matrices[2:])]
            for number, weight in enumerate(weights):
                agent.theta[2 * number].copy_(weight)
                agent.theta[2 * number + 1].zero_()
        for task, e in enumerate(self._embeddings()):
            agent.slots[task] = {"e": nn.Parameter(e), "target": None, "steps": 0, "provenance": []}
        agent.rebuild()

    def _embeddings(self) -> list[Tensor]:
        return [torch.empty(2).normal_(generator=self._weights) for _ in CURVES]

    def order(self, examples: int = 100) -> Iterator[int]:
        """Yield indices of one reshuffled epoch after another."""
        indices = np.arange(examples)
        while True:
            self._shuffling.shuffle(indices)
            yield from indices.tolist()


def errors(agent: HNET, curves: Sequence[Curve]) -> list[float]:
    """Return the test errors."""
    return [F.mse_loss(agent.predict(c.test_x, task), c.test_y).item() for task, c in enumerate(curves)]


def learn(name: str, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """Learn the curves, and return the errors right after each and after all."""
    row, curves, during = TABLE[name], [curve(*each) for each in CURVES], list[float]()
    draws = Draws(row.seed)
    spec = clenv.make("clenv/ToyThreePolynomials-v0").unwrapped.stream_spec
    agent = row.cls(spec, **{**PUBLISHED, **row.changes})
    draws.begin(agent)
    for task, points in enumerate(curves):
        if task and name == "from scratch":
            draws.begin(agent)
        order = draws.order()
        agent.enter(task)
        for _ in range(steps):
            rows = list(islice(order, ROWS))
            agent.learn(F.mse_loss(agent.forward(points.x[rows]), points.y[rows]))
        if isinstance(agent, ElasticHNET):
            rows = list(islice(draws.order(), 100))
            agent.estimate(points.x[rows], points.y[rows])
        during.append(errors(agent, curves)[task])
    return during, errors(agent, curves)


def main() -> None:
    """Print the rows that were asked for."""
    parser = argparse.ArgumentParser(description="hypernetworks on three toy curves, beside the authors' code")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(map(repr, TABLE))}; by default all")
    names = parser.parse_args().rows or list(TABLE)
    unknown = set(names) - set(TABLE)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}: expected {', '.join(TABLE)}")
    torch.set_num_threads(1)
    print(f"{'test MSE of curves 1 to 3':24}{'right after each, theirs':^50}{'after all three, theirs':^50}")
    for name in names:
        columns = zip(learn(name), (TABLE[name].during or (), TABLE[name].final), strict=True)
        print(f"{name:24}" + "".join(f"{_line(ours):>25}{_line(theirs):>25}" for ours, theirs in columns), flush=True)


def _line(values: Sequence[float]) -> str:
    return " ".join(f"{value:.5f}" for value in values)


if __name__ == "__main__":
    main()
