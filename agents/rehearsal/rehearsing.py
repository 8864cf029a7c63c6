"""What learners share that go on learning from examples they keep: ER, DER, A-GEM, GEM, CLPU-DER++, ..."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clenv.agent import Outcome
from clenv.agents.networks.backbone import affine
from clenv.agents.networks.flat import Flat, differentiate
from clenv.agents.networks.learning import Ongoing, values_of
from clenv.agents.references.finetune import Finetune
from clenv.events import Exactness, Receipt, UnlearnRequest
from clenv.fields import Count, Whole
from clenv.losses import mean_loss
from clenv.settings import StreamSpec

from .memory import HIDDEN, Draws, Memory


class Kept(NamedTuple):
    """Examples in a memory."""

    memory: Memory
    rows: Tensor


class Rehearsing(Finetune):
    """Plain training that can learn from examples of several tasks together, each answered by its own head.

    The optimiser leaves heads alone that a step does not involve.
    """

    heads_apart = False

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        sizes = set(spec.output_sizes or ())
        self._ragged = len(sizes) > 1
        self._width = max(sizes, default=spec.output_size)
        self._members: Sequence[Any] = (self,)  # whose examples a step is about: of a herd all

    def involved(self, slots: Iterable[int]) -> list[Flat]:
        """Return the backbone and some heads, each once."""
        return [self.shared, *(self.heads[slot] for slot in dict.fromkeys(slots))]

    def make_heads(self, slots: Iterable[int]) -> None:
        """Make the heads that there are not yet."""
        for slot in slots:
            if slot not in self.heads:
                self.heads[slot] = self._new_head(slot)

    def restart(self) -> None:
        """Go back to the initial parameters and a fresh optimiser, without heads."""
        self.restart_backbone()
        self.heads, self.slot = {}, None

    # Examples of several tasks

    def slots(self, memory: Memory, rows: Tensor) -> list[int]:
        """Return the head of each of some examples; where there is one for all, that one alone."""
        slots: list[int] = memory.at("task", rows).tolist() if self._head_per_task else [0]
        return slots

    def answers(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        """Answer inputs, each through its own head or all through one, with the graph; shape ``(n, output_size)``."""
        return self._drop(self._through(self.hidden(self._lift(x), slots[0]), [slots]))

    def _through(self, h: Tensor, slots: Sequence[Sequence[int]]) -> Tensor:
        """Return answers to features, each through its own head.

        Args:
            h: Shape ``(n, features)``, or of several networks ``(S, n, features)``.
            slots: Of each network the head of each of its examples, or the one head of all.
        """
        used = [list(dict.fromkeys(own)) for own in slots]
        count = max(map(len, used))
        if count == 1 and not (self._many and self._head_per_task):
            return affine(h, *self.heads[used[0][0] if not self._many else 0].trained)
        # All networks through as many heads; where one needs fewer, some are there twice and answer nothing.
        pairs = zip(self._members, used, strict=True)
        heads = [member.heads[slot].trained for member, own in pairs for slot in (own * count)[:count]]
        if not self._together:
            h, heads = h[None], [[weight.mT[None], bias[None]] for weight, bias in heads]
        weight, bias = (torch.cat(parameters) for parameters in zip(*heads, strict=True))
        through_each = affine(h[:, None].expand(-1, count, -1, -1).flatten(0, 1), weight, bias)
        through_each = through_each.view(len(slots), count, *through_each.shape[1:])
        places = [{slot: place for place, slot in enumerate(own)} for own in used]
        own = torch.tensor([[at[slot] for slot in mine] for at, mine in zip(places, slots, strict=True)])
        own = own.to(h.device)[:, None, :, None].expand(-1, 1, -1, through_each.shape[3])
        found = through_each.gather(1, own).squeeze(1)
        return found if self._together else torch.select(found, 0, 0)

    def loss_on(self, answers: Tensor, kept: Sequence[Kept], target: str = "y") -> Tensor:
        """Return the mean loss of answers to kept examples, over the outputs that count for each.

        Args:
            answers: Of each network, shape ``(S, n, output_size)``.
            kept: Of each the examples.
            target: ``y``; or ``z``, the mean squared distance to the kept answers.

        Returns:
            Shape ``(S,)``.
        """
        targets = torch.stack([memory.at(target, rows) for memory, rows in kept])
        if not self._ragged:
            if self._width < answers.shape[2]:  # a view costs as much as a small layer
                answers = answers[..., : self._width]
            if targets.is_floating_point():
                targets = targets[..., : self._width]
            return mean_loss(answers, targets)
        outputs = torch.stack([memory.at("outputs", rows) for memory, rows in kept])[..., None]
        inside = torch.arange(answers.shape[2], device=answers.device) < outputs
        if not targets.is_floating_point():
            return mean_loss(answers.masked_fill(~inside, -torch.inf), targets)
        squares = (answers - targets).square().masked_fill(~inside, 0.0)
        return (squares / outputs).sum(-1).mean(-1)

    # Updates

    def rehearse(self, memory: Memory, rows: Tensor) -> None:
        """Take one step of the optimiser on the loss of kept examples, of whose heads there must be all."""
        slots = self.slots(memory, rows)
        answers = self.answers(memory.at("x", rows), slots)
        self.update(self.loss_on(answers[None], [Kept(memory, rows)])[0], slots)

    def learn(self, loss: Tensor) -> Mapping[str, float] | None:
        """Take one step of the optimiser on the loss of the task entered."""
        assert self.slot is not None  # for the type checker: `enter` came before
        self.update(loss, (self.slot,))
        return None

    def update(self, loss: Tensor, slots: Iterable[int]) -> None:
        """Take one step of the optimiser, over the backbone and the heads that the loss involves."""
        parts = self.involved(slots)
        differentiate(loss, parts)
        self._rule.step(parts)


@dataclass(frozen=True)
class Rehearsal(Ongoing):
    """What is kept and how much of it is replayed; the base of the hyperparameters of learners that replay."""

    capacity: Whole = 500
    """``m``: examples kept; 0: plain training."""
    replay: Count | None = None
    """Kept examples drawn in a step, without replacement; None: as many as a minibatch has."""
    removal: Literal["repair", "retrain"] = "repair"
    """What follows when a task's examples are purged: training goes on on what is kept (repair), or starts anew from
    the initial parameters on what is kept (retrain)."""
    removal_steps: Count = 50
    """Steps of either."""


class Replaying(Rehearsing):
    """Keeps examples and replays them; on a request they are purged, and the network is trained on what is left.

    The level is INTERFACE: the task's examples and its head, where it has one, are gone, and the rest has moved on from
    where the task left it; but traces remain in the weights, and in which examples were kept (L1). Once no task is left
    the agent is as before the stream, bit for bit (L3).

    Attributes:
        tasks: Minibatches learned from, by task.
        replay: Random numbers of what is drawn.
    """

    unlearning = Exactness.INTERFACE

    @dataclass(frozen=True)
    class Hyperparameters(Rehearsal):
        """Of `Replaying`."""

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        self.tasks: dict[int, int] = {}
        self.replay = Draws(*self.key("replay"))

    def key(self, purpose: str) -> tuple[int | str, ...]:
        """Return the key of the random numbers for a purpose."""
        return self._seed, type(self).__name__, purpose

    @abstractmethod
    def memories(self) -> Sequence[Memory]:
        """Return all memories; the first that is not empty is rehearsed from after a request."""

    def draw(self, memory: Memory, draws: Draws | None = None) -> Tensor:
        """Draw the rows of a memory that are replayed in a step; ``draws``: None for `replay`."""
        return (
            (draws or self.replay).distinct(self._hyper.replay or self._spec.batch_size, memory.size).to(self._device)
        )

    def prepare(self, outcome: Outcome) -> bool:
        """Count the minibatch."""
        task = HIDDEN if outcome.task is None else outcome.task
        self.tasks[task] = self.tasks.get(task, 0) + 1
        return super().prepare(outcome)

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Purge the tasks' examples and heads, and train on what is left."""
        if not self._hyper.capacity:
            return super().unlearn(request)
        known = [task for task in request.tasks if task in self.tasks]
        if not known and HIDDEN not in self.tasks:
            return Receipt(Exactness.INTERFACE, detail="nothing was learned from these tasks")
        for task in known:
            del self.tasks[task]
        if not self.tasks:
            freed = self._bytes()
            fresh = type(self)(self._spec, seed=self._seed, device=self._device, **values_of(self._hyper))
            self.load_state_dict(fresh.state_dict())
            return Receipt(Exactness.EXACT, bytes_freed=freed, detail="no task is left: everything starts anew")
        before = self._bytes()
        for memory in self.memories():
            memory.purge(request)
        if self._head_per_task:
            for task in known:
                self.drop_head(task)
        freed = before - self._bytes()
        samples = self.mend()
        others = range(self._spec.tasks or 0) if HIDDEN in self.tasks else sorted(self.tasks)
        changed = tuple(task for task in others if task not in request.tasks)
        detail = f"examples purged; {self._hyper.removal} on {samples} of what is left"
        return Receipt(Exactness.INTERFACE, changed, samples, freed, detail)

    def mend(self) -> int:
        """Train on what is kept, or start anew if that is nothing; return the examples read."""
        memory = next((memory for memory in self.memories() if memory.size), self.memories()[0])
        if self._hyper.removal == "retrain" or not memory.size:
            slots = list(self.heads)
            self.restart()
            self.make_heads(slots)
        samples = 0
        for _ in range(self._hyper.removal_steps if memory.size else 0):
            rows = self.draw(memory)
            self.rehearse(memory, rows)
            samples += len(rows)
        return samples

    def _bytes(self) -> int:
        """Bytes of the examples kept and of the heads."""
        heads = sum(p.numel() * p.element_size() for head in self.heads.values() for p in head)
        return heads + sum(memory.size * memory.row_bytes for memory in self.memories())
