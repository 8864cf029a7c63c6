"""MetaMask: a network that learns to mask the units of another, online learner.

After the note *Learning to mask activation* (2021), which builds on S. Beaulieu et al., *Learning to Continually Learn*
(ANML), ECAI 2020, arXiv 2002.09571, and on the streams of OSAKA (M. Caccia et al., NeurIPS 2020).

The inner network learns the stream by plain SGD. A mask network ``phi`` scales the activations of its last hidden
layer, and so decides which units answer and which learn. It is trained, through the inner updates, to make the sum of
the inner losses over a sliding window small; what a mask does to learning beyond the window earns it no credit.

Two things to know before comparing. The inner network without a mask at the *same* inner rate is no baseline: large
rates are what masks repair. Take ``mask="none"`` at its own best rate. And a falling window loss alone shows little:
masks that only rise, or all close, lower it too; look at the figures and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clenv.agent import Outcome, tensors
from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.learning import Learner, set_gradients
from clenv.agents.networks.optimizers import adam
from clenv.agents.networks.stack import stack_of
from clenv.errors import CapabilityError, SettingsError
from clenv.events import Exactness, Receipt, UnlearnRequest, VisitBegin
from clenv.fields import Count, Positive
from clenv.picture import Picture
from clenv.settings import StreamSpec

from .masking import InnerLearner, Masked, MaskKind, Pass, Record, Theta, clip, make_mask

_CLIP = 1.0  # total norm of the meta gradient


class MetaMask(Learner):
    """An inner learner under a learned mask, both learning online.

    It needs no task labels and has one head. Every ``meta_every`` steps the last ``window`` minibatches are unrolled
    again from the inner parameters at their begin, with the present ``phi``, and ``phi`` takes one step of Adam along
    the gradient of the sum of their losses; the graph is cut at the begin of the window. The minibatches and inner
    parameters of one window are kept for that.

    In a pre-training phase the inner network starts anew every ``episode`` steps, and again as the stream begins.

    On a request that concerns the inner network it starts anew from its initial draw, and history and window are
    emptied; ``phi`` keeps what it learned (level L1), unless ``forget="all"`` draws it anew too, with which everything
    is forgotten. Otherwise the request is refused (L0).

    Attributes:
        phi: Parameters of the mask network.
        theta: Those of the inner network.
        history: Records of the last ``2 window`` inner steps.
        window: Step, inputs, targets and number of outputs of the last minibatches.
        thetas: The inner parameters before each of them.
        played: Inner steps since the inner network started.
        since: Stream step of the first of them, and of the first from which ``phi`` learned; None before it.
        latest: Stream step last learned from.
        optimizer: Of ``phi``.
    """

    @dataclass(frozen=True)
    class Hyperparameters(Architecture):
        """Of `MetaMask`."""

        mask: MaskKind = "history"
        """What the mask network sees: recent activations and gradients, the input (as in ANML), nothing (one learned
        number a unit: a control); or no masks at all (the baseline)."""
        masked: Masked = "activations"
        """What masks scale: activations, and with them the gradients; gradients alone; or both, by two masks."""
        inner_rate: Positive = 0.1
        """Step size of the inner SGD, eta."""
        output_bias: bool = True
        """Whether the output layer has a bias."""
        window: Count = 10
        """Inner losses that are summed, and steps that the mask network looks back, W."""
        meta_every: Count = 10
        """Inner steps between two meta steps, S, at most ``window``; as many: windows are consecutive blocks."""
        meta_rate: Positive = 1e-3
        """Step size of Adam on the mask network."""
        meta_learning: Literal["always", "pretraining", "never"] = "always"
        """When the mask network learns."""
        episode: Count = 100
        """Steps after which the inner network starts anew in a pre-training phase."""
        first_order: bool = False
        """Whether inner gradients count as constants: masks then earn credit only for their direct effect."""
        reset_on_switch: bool = False
        """Whether the inner network starts anew with each visit; visits must be announced."""
        forget: Literal["reset", "all"] = "reset"
        """What a request makes start anew: the inner network, or the mask network as well."""

        def __post_init__(self) -> None:
            """Check that no step is left out of a meta step."""
            super().__post_init__()
            if self.meta_every > self.window:
                raise SettingsError(f"meta_every={self.meta_every}: expected at most window={self.window}")

    def __init__(
        self, spec: StreamSpec, *, seed: int = 0, device: str | torch.device = "cpu", **hyperparameters: Any
    ) -> None:
        super().__init__(spec, seed=seed, device=device, **hyperparameters)
        hyper = self._hyper
        if hyper.reset_on_switch and not spec.announce_switches:
            raise CapabilityError("reset_on_switch=True needs announced visits: expected announce_switches=True")
        backbone = stack_of(hyper.build(spec.input_shape), type(self).__name__)
        mask = make_mask(hyper.mask, math.prod(spec.input_shape), backbone.features, hyper.masked)
        self._learner = InnerLearner(
            backbone,
            mask,
            hyper.inner_rate,
            hyper.window,
            output_bias=hyper.output_bias,
            masked=hyper.masked,
            first_order=hyper.first_order,
        )
        self.phi: dict[str, nn.Parameter] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.since: dict[str, int] = {}
        self.latest = 0
        self._draw_phi()
        self._start(1 if spec.pretrain_steps else 0)

    def _draw_phi(self) -> None:
        drawn = self._learner.mask.initial(self.generator("phi"))
        self.phi = {name: nn.Parameter(value.to(self._device)) for name, value in drawn.items()}
        self.rebuild()

    def _start(self, draw: int) -> None:
        """Let the inner network start anew; the draw of the stream is number 0."""
        drawn = self._learner.initial(self._spec.output_size, self.generator("theta", draw))
        self.theta: Theta = tuple(p.to(self._device) for p in drawn)
        self.history: list[Record] = []
        self.window: list[tuple[int, Tensor, Tensor, int]] = []
        self.thetas: list[Theta] = []
        self.played = 0
        self.since.pop("theta", None)
        self._pass: Pass | None = None

    def rebuild(self) -> None:
        """Make the optimiser over the parameters of the mask network, if it has any."""
        self.history = [Record(*record) for record in vars(self).get("history", ())]
        if self.phi:
            self.optimizer = adam(self.phi.values(), self._hyper.meta_rate)

    # Answers

    @property
    def _values(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.phi.items()}

    @torch.no_grad()
    def predict(self, x: Tensor, task: int | None = None) -> Tensor:
        """Answer inputs with the masks that the history so far gives them, whatever the task."""
        return self._learner.output(self.theta, self.features(x, task))

    @torch.no_grad()
    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return the masked activations of the last hidden layer."""
        del task
        phi = self._values
        return self._learner.features(phi, self._learner.past(phi, self.history), self.theta, x)

    def pictures(self) -> Mapping[str, Picture]:
        """Return the masks of the last steps: a row a step, the oldest first, a column a unit."""
        if not self.history:
            return {}
        masks = torch.stack([record.m for record in self.history])
        return {"masks": Picture(masks, [("last steps", len(masks))], [("units of the last layer", masks.shape[1])])}

    # Learning

    def enter(self, task: int | None) -> None:
        """Do nothing: the method knows no tasks."""

    def forward(self, x: Tensor) -> Tensor:
        """Answer inputs, with the graph."""
        phi = self._values
        self._pass = self._learner.answer(self.theta, phi, self._learner.past(phi, self.history), x)
        return self._pass.answers

    def observe(self, outcome: Outcome) -> Mapping[str, float]:
        """Take an inner step, and the meta step that is due."""
        figures = self.learn(self.with_graph(outcome))
        keep, step = self._hyper.window, outcome.step
        self.window = [*self.window, (step, outcome.x, outcome.y, outcome.outputs)][-keep:]
        self.latest = step
        self.since.setdefault("theta", step)
        if self.played % self._hyper.meta_every == 0 and self._meta_learns(step):
            figures["window loss"] = self._meta_step()
        ahead = step + 1 + self._spec.pretrain_steps
        if step == -1:  # the stream begins
            self._start(0)
        elif step < -1 and ahead % self._hyper.episode == 0:
            self._start(1 + ahead // self._hyper.episode)
        return figures

    def learn(self, loss: Tensor) -> dict[str, float]:
        """Take an inner step on the loss of the minibatch last answered; return figures."""
        assert self._pass is not None  # for the type checker: `forward` came before
        done = self._learner.update(self._pass, loss)
        keep = self._hyper.window
        self.thetas = [*self.thetas, self.theta][-keep:]
        self.history = [*self.history, done.record][-2 * keep :]
        self.theta, self._pass = done.theta, None
        self.played += 1
        return {
            "inner loss": done.loss.item(),
            "mean mask": done.masks.mean().item(),
            "masks at 0": (done.masks == 0).double().mean().item(),
            "masks above .9": (done.masks > 0.9).double().mean().item(),
        }

    def _meta_learns(self, step: int) -> bool:
        when = self._hyper.meta_learning
        return bool(self.phi) and (when == "always" or (when == "pretraining" and step < 0))

    def _meta_step(self) -> float:
        """Move ``phi`` by Adam along ``dJ/dphi``; return ``J``."""
        before = self.history[: -len(self.window)][-self._hyper.window :]
        gradients, loss = self._learner.meta_gradient(
            self._values,
            self.thetas[0],
            before,
            [(x, y) for _, x, y, _ in self.window],
            [outputs for *_, outputs in self.window],
        )
        clipped = clip(gradients, _CLIP)
        set_gradients(list(self.phi.values()), [clipped[name] for name in self.phi])
        if self.optimizer is not None:
            self.optimizer.step()
        for parameter in self.phi.values():
            parameter.grad = None
        self.since.setdefault("phi", self.window[0][0])
        return loss.item()

    def on_visit_begin(self, event: VisitBegin) -> None:
        """Start the inner network anew, if that is asked for."""
        if self._hyper.reset_on_switch and event.step >= 0:
            self._start(0)

    # Unlearning

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Start the inner network anew if it learned from the tasks; with ``forget="all"``, the mask network too."""
        everything = self._hyper.forget == "all"
        first = min(self.since.values()) if everything and self.since else self.since.get("theta")
        if first is None or not any(first <= last and start <= self.latest for start, last in request.steps):
            return Receipt(Exactness.UNSUPPORTED, detail="only the mask network learned from the tasks: it stays")
        before = self._held()
        self._start(0)
        if everything:
            self.since = {}
            self._draw_phi()
        return Receipt(
            Exactness.INTERFACE,
            changed=tuple(task for task in range(self._spec.tasks or 0) if task not in request.tasks),
            bytes_freed=before - self._held(),
            detail="everything was forgotten, all tasks alike"
            if everything
            else "the inner network forgot all tasks alike; the mask network keeps what it learned from them",
        )

    def _held(self) -> int:
        """Return the bytes of what is kept of past steps."""
        held = tensors([self.history, self.thetas, self.window])
        return sum(tensor.numel() * tensor.element_size() for tensor in held)
