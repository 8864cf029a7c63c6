"""Generative replay from a network whose decoder is generated for each task: a hypernetwork keeps the tasks apart.

The replay model of HNET+TIR and HNET+R: von Oswald, Henning, Grewe, Sacramento, *Continual learning with
hypernetworks*, ICLR 2020 (arXiv 1906.00695), section 3 and appendix on generative replay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from clenv.agents.networks.architecture import Architecture
from clenv.agents.networks.backbone import initial_affine
from clenv.agents.networks.learning import set_gradients
from clenv.events import Receipt, UnlearnRequest
from clenv.fields import Count, Positive
from clenv.picture import Picture
from clenv.rng import key
from clenv.settings import StreamSpec

from .hnet import HNET


@dataclass(frozen=True)
class ReplayHyperparameters(HNET.Hyperparameters):
    """Of agents with a `ReplayVAE`: the generator's hyperparameters are those of the decoder's generator too."""

    chunk: Count | None = 8000
    """``n_c``: images ask for decoders, and thus for generators, with as many parameters as the decoders."""
    latent: Count = 16
    """Size of a latent code."""
    encoder_hidden: Annotated[tuple[Count, ...], MinLen(1)] = (100,)
    """Units of each dense layer of the encoder."""
    decoder_hidden: Annotated[tuple[Count, ...], MinLen(1)] = (100,)
    """Units of each dense layer of the decoder, which is generated."""
    pixel_noise: Positive = 1.0
    """Standard deviation of an input given the decoder's output."""
    refresh_steps: Count = 200
    """Steps in which a plain network learns the remaining tasks anew from replay, once a task is unlearned."""


class ReplayVAE:
    """A variational autoencoder: the encoder is plain and unprotected, the decoder is an `HNET` from codes to pixels.

    Its loss is the mean over the pixels of the negative log-likelihood, plus the divergence of the code from
    ``N(0, I)`` divided by the number of pixels. Unlike the authors' pixels, inputs here may be any numbers: given the
    code they are normal, not Bernoulli. The authors also tell the decoder the task by a one-hot input; as its weights
    are the task's own, that is left out.

    Attributes:
        encoder: Parameters of its layers; weight and bias of its output, mean and log-variance of a code.
        optimizer: Over the encoder.
        decoder: Generates the decoders.
    """

    def __init__(self, spec: StreamSpec, hyper: ReplayHyperparameters, *, seed: int, device: torch.device) -> None:
        self._spec, self._hyper, self._device = spec, hyper, device
        self._pixels = math.prod(spec.input_shape)
        self._backbone = Architecture(hidden=hyper.encoder_hidden).build((self._pixels,))
        shared = {item.name: getattr(hyper, item.name) for item in fields(HNET.Hyperparameters)}
        self.decoder = HNET(
            replace(spec, input_shape=(hyper.latent,), output_size=self._pixels, output_sizes=None, loss="mse"),
            seed=key(seed, "decoder"),
            device=device,
            **{**shared, "backbone": "mlp", "hidden": hyper.decoder_hidden, "activation": "relu"},
        )
        self._begin()

    def _begin(self) -> None:
        """Make the encoder, and its optimiser, as at the start."""
        draws = self.decoder.generator("encoder")
        layers = self._backbone.initial(draws, self._device)
        output = initial_affine((2 * self._hyper.latent, self._backbone.features), draws, self._device)
        self.encoder: list[nn.Parameter] = [*layers, *output]
        self.optimizer = self._hyper.make_optimizer(self.encoder)

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {
            "encoder": self.encoder,
            "optimizer": self.optimizer.state_dict(),
            "decoder": self.decoder.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for parameter, values in zip(self.encoder, state["encoder"], strict=True):
            parameter.copy_(values)
        self.optimizer.load_state_dict(state["optimizer"])
        self.decoder.load_state_dict(state["decoder"])

    # Learning

    def learn(self, x: Tensor, task: int) -> None:
        """Take one step on a task's inputs."""
        self.decoder.enter(task)
        loss = self._loss(x.flatten(1), task)
        gradients = torch.autograd.grad(loss, [*self.encoder, *self.decoder.trained])
        set_gradients(self.encoder, gradients[: len(self.encoder)])
        self.optimizer.step()
        self.decoder.follow(gradients[len(self.encoder) :])

    def _loss(self, x: Tensor, task: int) -> Tensor:
        h = self._backbone.forward(x, self.encoder[:-2])
        mean, log_variance = F.linear(h, *self.encoder[-2:]).chunk(2, 1)
        draws = self.decoder.generator("noise", task, self.decoder.slots[task]["steps"])
        noise = torch.randn(mean.shape, generator=draws).to(self._device)
        answer = self.decoder.forward(mean + noise * (log_variance / 2).exp())
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return F.mse_loss(answer, x) / (2 * self._hyper.pixel_noise**2) + divergence / self._pixels

    # Replay

    def tasks(self, without: int | None = None) -> list[int]:
        """Return the tasks that can be replayed, but for one: those that were learned."""
        return [task for task, slot in self.decoder.slots.items() if slot["steps"] and task != without]

    @torch.no_grad()
    def decoders(self, tasks: list[int]) -> dict[int, Tensor]:
        """Return the decoder that is generated for each task."""
        return dict(zip(tasks, self.decoder.networks(tasks), strict=True))

    @torch.no_grad()
    def replay(
        self, tasks: list[int], rows: int, draws: torch.Generator, decoders: Mapping[int, Tensor] | None = None
    ) -> tuple[list[int], Tensor]:
        """Draw inputs of tasks, equally many of each.

        Args:
            tasks: At least one.
            rows: How many inputs in all, about; if there are more tasks than that, as many are drawn at random.
            draws: Where codes, and tasks, are drawn.
            decoders: Of all the tasks; None: they are generated.

        Returns:
            The tasks, and inputs of shape ``(tasks, rows a task, *input_shape)``.
        """
        if len(tasks) > rows:
            tasks = [tasks[number] for number in torch.randperm(len(tasks), generator=draws)[:rows].tolist()]
        z = torch.randn(len(tasks), rows // len(tasks), self._hyper.latent, generator=draws).to(self._device)
        made = self.decoders(tasks) if decoders is None else decoders
        x = torch.stack([self.decoder.answer(codes, made[task]) for codes, task in zip(z, tasks, strict=True)])
        return tasks, x.view(*x.shape[:2], *self._spec.input_shape)

    def picture(self) -> Picture:
        """Return eight replayed inputs of each task, from the least number, 0, to the largest, 1, task by task.

        Images (their first channel) stand side by side; other inputs are lines, eight a task.
        """
        tasks, x = self.replay(self.tasks(), 8 * len(self.tasks()), self.decoder.generator("picture"))
        x = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)
        if x.dim() == 5:
            x = x[:, :, 0].permute(0, 2, 1, 3).flatten(2)
        rows = x.flatten(2)
        return Picture(rows.flatten(0, 1), [(task, rows.shape[1]) for task in tasks])

    def unlearn(self, request: UnlearnRequest) -> Receipt:
        """Forget tasks: the decoder by the chosen operation, the encoder by starting anew."""
        receipt = self.decoder.unlearn(request)
        self._begin()
        return receipt
