"""An agent of one's own: nearest class means, which learns, and forgets exactly, by counting."""

import torch
from torch import Tensor

import clenv
from clenv.settings import StreamSpec


class NearestMean(clenv.Agent):
    """Answers with the class whose mean input, within the task, is nearest.

    A task's means are a function of its own examples alone, so dropping them is exact unlearning.
    """

    needs_task_labels = "always"
    losses = ("cross_entropy",)
    unlearning = clenv.Exactness.EXACT
    forgetting_free = commutes = grows = True

    def __init__(self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        super().__init__(spec, seed=seed, device=device)
        self.sums: dict[int, Tensor] = {}  # by task: sum of the inputs of each class, and their number
        self.counts: dict[int, Tensor] = {}

    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return minus the squared distance to each mean; a class without examples is far away."""
        if task not in self.sums:
            return x.new_zeros(len(x), self.spec.output_size)
        counts = self.counts[task].clamp(min=1)[:, None]
        distances = torch.cdist(x.flatten(1), self.sums[task] / counts) ** 2
        return -distances.where(self.counts[task] > 0, 100.0)

    def observe(self, outcome: clenv.Outcome) -> None:
        """Count the examples in."""
        task, x = outcome.task, outcome.x.flatten(1)
        assert task is not None  # it needs task labels
        if task not in self.sums:
            self.sums[task] = x.new_zeros(self.spec.output_size, x.shape[1])
            self.counts[task] = x.new_zeros(self.spec.output_size)
        self.sums[task].index_add_(0, outcome.y, x)
        self.counts[task].index_add_(0, outcome.y, x.new_ones(len(x)))

    def unlearn(self, request: clenv.UnlearnRequest) -> clenv.Receipt:
        """Drop the tasks' means."""
        for task in request.tasks:
            self.sums.pop(task, None)
            self.counts.pop(task, None)
        return clenv.Receipt(clenv.Exactness.EXACT, detail="dropped the class means")


clenv.register_agent("nearest-mean", NearestMean)

if __name__ == "__main__":
    env = clenv.make("clenv/SplitDigits-v0", requests=clenv.RandomRequests(unlearn_rate=0.002, keep=2))
    agent = clenv.make_agent("nearest-mean", env)
    for record in clenv.run(env, agent):
        if record.evaluation:
            print(record.step, record.evaluation.accuracy)
    print(f"cumulative online loss {env.score.cumulative_loss:.1f}, accuracy {env.score.accuracy:.3f}")
