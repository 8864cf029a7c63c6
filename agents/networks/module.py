"""Any `torch.nn.Module` as a backbone: called with parameters that live elsewhere (`torch.func.functional_call`)."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from clenv.errors import SettingsError
from clenv.fields import Network
from clenv.layers import note, watched
from clenv.paths import imported

from .backbone import Backbone

_PROBES = 4  # examples that a module is tried with


class Module(Backbone):
    """A module up to its features; a head is put on top of what it returns, flattened.

    A module that is given begins with the parameters it has, whatever the seed: pretrained ones, say. A function that
    makes one draws them from the agent's seed: PyTorch's generator is seeded for the call and is then as before. The
    module itself is never changed.

    Args:
        given: The module, or what makes it; a function may take ``input_shape``.
        input_shape: Shape of one input.

    Raises:
        UnknownNameError: A path leads nowhere.
        SettingsError: It is no module, cannot be called on such inputs, returns anything but a tensor of floats with a
            row an example, has no parameters, or changes what it keeps when it only answers.
    """

    def __init__(self, given: Network, input_shape: Sequence[int]) -> None:
        self._given, self._shape = given, tuple(input_shape)
        self._made = imported(given, "backbone") if isinstance(given, str) else given
        self._net = self._fresh(torch.Generator().manual_seed(0))
        self._names = [name for name, _ in self._net.named_parameters()]
        self._kept = [name for name, _ in self._net.named_buffers()]
        self._tied = len(self._names) < len(list(self._net.named_parameters(remove_duplicate=False)))
        if not self._names:
            raise SettingsError(f"{self} has no parameters: expected a network that can learn")
        frozen = [name for name, parameter in self._net.named_parameters() if not parameter.requires_grad]
        if frozen:
            raise SettingsError(
                f"{self} has frozen parameters, {frozen[0]!r} first: expected all to learn; put the frozen in front "
                "of the tasks by clenv.scenarios.features"
            )
        self._features, self._differs = self._probe()

    def __repr__(self) -> str:
        """Return what was given."""
        name = getattr(self._given, "__name__", type(self._given).__name__)
        return f"backbone={self._given if isinstance(self._given, str) else name!r}"

    @property
    def features(self) -> int:
        """Width of the output."""
        return self._features

    @property
    def differs(self) -> bool:
        """Whether it learns by another pass than it answers by, as a trial has shown."""
        return self._differs

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the parameters, in the module's order; those that are tied count once."""
        return [tuple(parameter.shape) for parameter in self._net.parameters()]

    @property
    def names(self) -> list[str]:
        """Names of the parameters, as the module has them."""
        return self._names

    def initial(self, generator: torch.Generator, device: torch.device) -> list[nn.Parameter]:
        """Return the module's own parameters, or draw those of a function's module."""
        net = self._fresh(generator)
        return [nn.Parameter(p.detach().clone().to(device), requires_grad=True) for p in net.parameters()]

    def buffers(self, device: torch.device) -> list[Tensor]:
        """Return the module's buffers."""
        return [buffer.detach().clone().to(device) for buffer in self._net.buffers()]

    def forward(self, x: Tensor, theta: Sequence[Tensor], *, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Return features in evaluation mode."""
        return self._call(x, theta, buffers, train=False)

    def train(
        self, x: Tensor, theta: Sequence[Tensor], generator: torch.Generator, *, buffers: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features in training mode, and the buffers after it; what it draws comes from the generator."""
        after = [buffer.clone() for buffer in buffers]
        with _drawing_from(generator, x.device):
            return self._call(x, theta, after, train=True), after

    def _call(self, x: Tensor, theta: Sequence[Tensor], buffers: Sequence[Tensor], *, train: bool) -> Tensor:
        h = cast("Tensor", self._raw(x, theta, buffers, train=train))
        return h if h.dim() == 2 else h.flatten(1)

    def _raw(self, x: Tensor, theta: Sequence[Tensor], buffers: Sequence[Tensor], *, train: bool) -> Any:
        """Return whatever the module returns."""
        self._net.train(train)
        state = dict(zip((*self._names, *self._kept), (*theta, *buffers), strict=True))
        with _shown(self._net):
            return functional_call(self._net, state, (x,), tie_weights=self._tied)

    def _fresh(self, generator: torch.Generator) -> nn.Module:
        """Return a module of its own, every parameter made."""
        with _drawing_from(generator, torch.device("cpu")):
            net = self._make()
            if any(map(is_lazy, [*net.parameters(), *net.buffers()])):
                net.eval()
                with torch.no_grad():
                    net(torch.zeros(_PROBES, *self._shape))
        return net.cpu()

    def _make(self) -> nn.Module:
        if isinstance(self._made, nn.Module):
            return copy.deepcopy(self._made)
        if not callable(self._made):
            raise SettingsError(
                f"{self} is a {type(self._made).__name__}: expected a torch.nn.Module, or what makes one"
            )
        arguments = {"input_shape": self._shape} if "input_shape" in inspect.signature(self._made).parameters else {}
        try:
            inspect.signature(self._made).bind(**arguments)
        except TypeError as error:
            raise SettingsError(f"{self}: expected a function of nothing, or of input_shape, but {error}") from error
        made = self._made(**arguments)
        if not isinstance(made, nn.Module):
            raise SettingsError(f"{self} returns a {type(made).__name__}: expected a torch.nn.Module")
        return made

    @torch.no_grad()
    def _probe(self) -> tuple[int, bool]:
        """Try the module: return the width of its output, and whether the two modes differ."""
        x = torch.randn(_PROBES, *self._shape, generator=torch.Generator().manual_seed(0))
        theta, before = list(self._net.parameters()), self.buffers(torch.device("cpu"))
        kept = [buffer.clone() for buffer in before]
        try:
            answer = self._raw(x, theta, kept, train=False)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise SettingsError(f"{self} cannot answer inputs of shape {self._shape}: {error}") from error
        if not (
            isinstance(answer, Tensor) and answer.is_floating_point() and answer.dim() > 1 and len(answer) == _PROBES
        ):
            shown = (
                f"{answer.dtype} of shape {tuple(answer.shape)}"
                if isinstance(answer, Tensor)
                else type(answer).__name__
            )
            raise SettingsError(
                f"{self} returns {shown} for {_PROBES} inputs: expected floats, a row an input; wrap it in a module "
                "that returns its features alone"
            )
        if not all(map(torch.equal, before, kept)):
            raise SettingsError(f"{self} changes its buffers in evaluation mode: an answer must leave them as they are")
        learned, after = self.train(x, theta, torch.Generator().manual_seed(0), buffers=before)
        same = torch.equal(learned, answer.flatten(1)) and all(map(torch.equal, before, after))
        return math.prod(answer.shape[1:]), not same


@contextmanager
def _drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Let what draws from PyTorch's own generators draw from this one; afterwards those are as they were before."""
    own = [torch.default_generator]  # not torch.manual_seed, which takes a picture of the stack each time
    if device.type == "cuda":
        own.append(torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index])
    before = [each.get_state() for each in own]
    seed = int(torch.randint(2**62, (), generator=generator))
    try:
        for each in own:
            each.manual_seed(seed)
        yield
    finally:
        for each, state in zip(own, before, strict=True):
            each.set_state(state)


@contextmanager
def _shown(net: nn.Module) -> Iterator[None]:
    """Show what the parts of a module put out that have no parts themselves, if somebody asks."""
    parts = [(name, part) for name, part in net.named_modules() if not list(part.children())] if watched() else []
    hooks = [part.register_forward_hook(partial(_show, name)) for name, part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _show(name: str, _part: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        note(output, name)
