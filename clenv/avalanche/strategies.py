"""Avalanche's strategies by name: what each is called with, what the adapter repairs, and what it warns of.

The numbers in the warnings are measured; `docs/avalanche.md` has the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clenv.avalanche.agent import AvalancheAgent, Training
from clenv.errors import SettingsError
from clenv.fields import Count, Fraction, NonNegative, Positive, Whole


class Naive(AvalancheAgent):
    """Avalanche's Naive: plain training."""

    Hyperparameters = Training
    keeps_segment = False

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        return library.Naive(**common)


class Cumulative(AvalancheAgent):
    """Avalanche's Cumulative: when a segment ends, train on it and on all before it."""

    Hyperparameters = Training
    whole_segments = shuffle = grows = True
    caveat = "keeps every example and trains on all of them at the end of every segment: the cost is quadratic"

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche.repairs import RoomyCumulative

        return RoomyCumulative(**common)


class JointTraining(AvalancheAgent):
    """Avalanche's JointTraining on everything seen so far, from the initial parameters, when a segment ends."""

    Hyperparameters = Training
    whole_segments = shuffle = grows = True
    caveat = (
        "Avalanche's JointTraining can be trained once, and knows the whole stream; here a fresh one is trained on "
        "everything seen so far whenever a segment ends: the cost is quadratic"
    )

    def prepare(self) -> None:
        """Begin without a past."""
        self.past: list[list[tuple[torch.Tensor, torch.Tensor, int]]] = []

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche.repairs import RoomyJointTraining

        return RoomyJointTraining(**common)

    def train(self) -> None:
        """Train a fresh strategy on all segments."""
        from clenv.avalanche.data import Minibatch, Segment

        self.past.append([tuple(each) for each in self._made.experience.minibatches])
        self._made = self._make()
        segments = [Segment([Minibatch(*each) for each in part], number) for number, part in enumerate(self.past)]
        self._made.train(segments, eval_streams=[], shuffle=self.shuffle)
        self._made._experiences = []  # noqa: SLF001  # kept in `past`
        self._made.experience = self._made.adapted_dataset = None


class Replay(AvalancheAgent):
    """Avalanche's Replay, with a reservoir as its memory."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `Replay`."""

        mem_size: Count = 200
        """Examples kept."""
        batch_size_mem: Whole = 0
        """Examples replayed a step; 0: as many as the stream's minibatch has."""

    caveat = (
        "Avalanche's default memory is shared equally by experiences, takes nothing in once there are more of them "
        "than slots, and costs quadratic time: a ReservoirSamplingBuffer is used instead, cut loose from the data sets "
        "that went through it"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        hyper = self._hyper
        plugin = library.ReplayPlugin(
            mem_size=hyper.mem_size,
            batch_size_mem=hyper.batch_size_mem or self._spec.batch_size,
            storage_policy=library.ReservoirSamplingBuffer(hyper.mem_size),
        )
        return library.Naive(**common, plugins=[plugin])


class EWC(AvalancheAgent):
    """Avalanche's EWC in separate mode: every segment's anchor and Fisher information, folded into one penalty."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `EWC`."""

        ewc_lambda: NonNegative = 1.0
        """Strength of the penalty, without the customary half."""
        fisher_batch_size: Whole = 0
        """Examples over which gradients are averaged before they are squared; 1: the empirical Fisher information;
        0: the stream's minibatch, as in Avalanche."""

    caveat = (
        "Avalanche's separate mode adds a penalty for every segment so far, at quadratic cost: their sum is folded "
        "into one, with the same gradient"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library
        from clenv.avalanche.repairs import FoldedEWC

        return self._sized(library.Naive(**common, plugins=[FoldedEWC(self._hyper.ewc_lambda)]))

    def _sized(self, strategy: Any) -> Any:
        strategy.train_mb_size = self._hyper.fisher_batch_size or strategy.train_mb_size
        return strategy


class EWCOnline(EWC):
    """Avalanche's EWC in online mode: the last anchor, and a decaying sum of Fisher information."""

    @dataclass(frozen=True)
    class Hyperparameters(EWC.Hyperparameters):
        """Of `EWCOnline`."""

        decay_factor: Fraction = 1.0
        """What an earlier segment's Fisher information is multiplied with when one ends."""

    shortest_segment = 2
    caveat = "protects nothing in segments of one minibatch: a visit of one minibatch goes on into the next"

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        hyper = self._hyper
        plugin = library.EWCPlugin(hyper.ewc_lambda, mode="online", decay_factor=hyper.decay_factor)
        return self._sized(library.Naive(**common, plugins=[plugin]))


class SI(AvalancheAgent):
    """Avalanche's SynapticIntelligence, with copies where it keeps views."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `SI`."""

        si_lambda: NonNegative = 1.0
        """Strength of the penalty, with the customary half."""
        eps: Positive = 1e-7
        """Damping. Importances are limited to 0.001 from above, where nearly all that are positive are."""

    keeps_segment = False
    shortest_segment = 2
    caveat = (
        "Avalanche keeps views of the parameters, not copies, and on a CPU is bit for bit plain training at any "
        "strength: copies are kept"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library
        from clenv.avalanche.repairs import CopyingSI

        return library.Naive(**common, plugins=[CopyingSI(self._hyper.si_lambda, eps=self._hyper.eps)])


class MAS(AvalancheAgent):
    """Avalanche's MAS: importances from the gradient of the outputs' norm."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `MAS`."""

        lambda_reg: NonNegative = 1.0
        """Strength of the penalty."""
        alpha: Fraction = 0.5
        """Share of earlier segments in the moving average of importances."""

    shortest_segment = 2
    caveat = (
        "protects nothing in segments of one minibatch: a visit of one minibatch goes on into the next. Avalanche "
        "raises where a loss is exactly zero: it goes on"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library
        from clenv.avalanche.repairs import SteadyMAS

        return library.Naive(**common, plugins=[SteadyMAS(self._hyper.lambda_reg, self._hyper.alpha)])


class LwF(AvalancheAgent):
    """Avalanche's LwF: the network as it was when the last segment ended is the teacher."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `LwF`."""

        alpha: NonNegative = 1.0
        """Strength of the distillation."""
        temperature: Positive = 2.0
        """Of the softmax; the loss is not multiplied by its square."""

    shortest_segment = 2
    caveat = "protects nothing in segments of one minibatch: a visit of one minibatch goes on into the next"

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        return library.LwF(**common, alpha=self._hyper.alpha, temperature=self._hyper.temperature)


class GDumb(AvalancheAgent):
    """Avalanche's GDumb: when a segment ends, train from the initial parameters on a class-balanced memory."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `GDumb`."""

        mem_size: Count = 200
        """Examples kept."""

    whole_segments = shuffle = True

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche.repairs import RoomyGDumb

        return RoomyGDumb(**common, mem_size=self._hyper.mem_size)


class AGEM(AvalancheAgent):
    """Avalanche's A-GEM, with a reservoir as its memory."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `AGEM`."""

        mem_size: Count = 200
        """Examples kept."""
        sample_size: Count = 64
        """Examples of the reference gradient."""

    caveat = (
        "Avalanche's memory grows with the segments, and raises once they outnumber sample_size: a "
        "ReservoirSamplingBuffer is used instead"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library
        from clenv.avalanche.repairs import ReservoirAGEM

        return library.Naive(**common, plugins=[ReservoirAGEM(self._hyper.mem_size, self._hyper.sample_size)])


class GEM(AvalancheAgent):
    """Avalanche's GEM: one constraint for every segment so far."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `GEM`."""

        patterns_per_exp: Count = 50
        """Examples kept of a segment."""
        memory_strength: NonNegative = 0.5
        """Margin of the constraints."""

    grows = True
    caveat = (
        "a step costs one backward pass for every segment so far, and memory grows with them: take long segments. "
        "Avalanche calls for the package quadprog: SciPy's non-negative least squares solve the same program"
    )

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library
        from clenv.avalanche.repairs import LeastSquaresGEM

        plugin = LeastSquaresGEM(self._hyper.patterns_per_exp, self._hyper.memory_strength)
        return library.Naive(**common, plugins=[plugin])


class DER(AvalancheAgent):
    """Avalanche's DER: a class-balanced memory with logits; DER++ where beta is positive."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `DER`."""

        mem_size: Count = 200
        """Examples kept."""
        batch_size_mem: Whole = 0
        """Examples replayed a step; 0: as many as the stream's minibatch has."""
        alpha: NonNegative = 0.1
        """Weight of the distance to the logits."""
        beta: NonNegative = 0.5
        """Weight of the replayed examples' loss."""

    multi_head = False
    caveat = "Avalanche computes logits when a segment ends, not when an example enters the memory"

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche.repairs import StreamDER

        hyper = self._hyper
        return StreamDER(
            **common,
            mem_size=hyper.mem_size,
            batch_size_mem=hyper.batch_size_mem or self._spec.batch_size,
            alpha=hyper.alpha,
            beta=hyper.beta,
        )


class ERACE(AvalancheAgent):
    """Avalanche's ER_ACE: replay with an asymmetric cross-entropy, when a segment ends."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `ERACE`."""

        mem_size: Count = 200
        """Examples kept."""
        batch_size_mem: Whole = 0
        """Examples replayed a step; 0: as many as the stream's minibatch has."""

    whole_segments = True
    multi_head = False

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        size = self._hyper.batch_size_mem or self._spec.batch_size
        return library.ER_ACE(**common, mem_size=self._hyper.mem_size, batch_size_mem=size)


class CWRStar(AvalancheAgent):
    """Avalanche's CWR*: after the first segment only the output layer learns, and its classes are averaged."""

    Hyperparameters = Training
    whole_segments = True
    multi_head = False

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        return library.CWRStar(**common, cwr_layer_name="head")


class PackNet(AvalancheAgent):
    """Avalanche's PackNet: each segment gets a part of the weights, the rest is pruned for those to come."""

    @dataclass(frozen=True)
    class Hyperparameters(Training):
        """Of `PackNet`."""

        epochs: Count = 2
        """Passes over a segment, those after pruning included."""
        post_prune_epochs: Count = 1
        """Passes after pruning."""
        prune_proportion: Fraction = 0.5
        """Share of the weights that are free which stay free for later segments."""

        def __post_init__(self) -> None:
            """Check that there are passes before pruning."""
            super().__post_init__()
            if self.post_prune_epochs >= self.epochs:
                raise SettingsError(
                    f"post_prune_epochs={self.post_prune_epochs}: expected less than epochs={self.epochs}"
                )

    needs_task_labels = "always"
    whole_segments = True
    caveat = (
        "Avalanche's PackNet raises when a task comes back: here a return gets weights of its own, as a new task does, "
        "and its task is answered by them"
    )

    def prepare(self) -> None:
        """Begin without a task."""
        self.latest: dict[int, int] = {}

    def network(self) -> nn.Module:
        """Return dense layers and one output layer, whose weights are packed."""
        from clenv.avalanche.library import PackNetModel
        from clenv.avalanche.network import SingleHead

        spec, hyper = self._spec, self._hyper
        plain = SingleHead(
            spec.input_shape, hyper.hidden, spec.output_size, activation=hyper.activation, seed=self._seed
        )
        model: nn.Module = PackNetModel(plain)
        return model

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        hyper = self._hyper
        return library.PackNet(
            **common, post_prune_epochs=hyper.post_prune_epochs, prune_proportion=hyper.prune_proportion
        )

    def train(self) -> None:
        """Train on the segment as a task of its own, the latest of its stream task."""
        from clenv.avalanche.data import Minibatch, Segment

        minibatches = self._made.experience.minibatches
        parts = [Minibatch(each.x, each.y, self.number) for each in minibatches]
        self.latest.update(dict.fromkeys((each.label for each in minibatches), self.number))
        self._made.train(Segment(parts, self.number), eval_streams=[], shuffle=self.shuffle)
        self._made.model.known_train_tasks_labels.clear()  # a growing list that PackNet never reads

    def answer(self, model: nn.Module, x: torch.Tensor, label: int) -> torch.Tensor:
        """Answer by the weights of the task's latest segment; a task never seen by the free ones."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        answer = super().answer(model, x, self.latest.get(label, self.number))
        for name, buffer in buffers.items():  # PackNet keeps in buffers which task it answers
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, buffer)
        return answer


class FromScratch(AvalancheAgent):
    """Avalanche's FromScratchTraining: every segment starts from the initial parameters."""

    Hyperparameters = Training
    keeps_segment = False

    def build(self, **common: Any) -> Any:
        """Return the strategy."""
        from clenv.avalanche import library

        return library.FromScratchTraining(**common)


NAMES = {
    "avalanche:naive": Naive,
    "avalanche:cumulative": Cumulative,
    "avalanche:joint": JointTraining,
    "avalanche:replay": Replay,
    "avalanche:ewc": EWC,
    "avalanche:ewc-online": EWCOnline,
    "avalanche:si": SI,
    "avalanche:mas": MAS,
    "avalanche:lwf": LwF,
    "avalanche:gdumb": GDumb,
    "avalanche:agem": AGEM,
    "avalanche:gem": GEM,
    "avalanche:der": DER,
    "avalanche:er-ace": ERACE,
    "avalanche:cwr": CWRStar,
    "avalanche:packnet": PackNet,
    "avalanche:from-scratch": FromScratch,
}
"""The agents by name."""
