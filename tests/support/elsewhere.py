"""A graphics card that is not there: tensors that say they are on it, compute on the processor, and meet no others.

Within `Elsewhere`, ``device="cuda"`` gives such tensors. What fails on a card for where tensors are fails here too:
operations on tensors of both places, NumPy views, draws by a generator of the processor. What cannot be seen: the
card's own rounding, its random numbers, its speed.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
_INDEXING = {
    getattr(torch.ops.aten, name) for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
}


class Away(Tensor):
    """A tensor on the card; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=inner.device)
        made.inner = inner
        return made

    def __init__(self, inner):
        """Do nothing more: `__new__` has done it."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self):
        return THERE

    def __repr__(self):
        return f"Away({self.inner!r})"

    def __reduce_ex__(self, protocol):
        plain = nn.Parameter(self.inner, self.requires_grad) if isinstance(self, nn.Parameter) else self.inner
        return plain.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = function.overloadpacket
        if kind is not torch.ops.aten.copy_:
            # A number may come from the processor, and so may what indexes a tensor of the card.
            others = [args[0], *args[2:3]] if kind in _INDEXING else tree_leaves((args, kwargs))
            if any(isinstance(each, Tensor) and not isinstance(each, Away) and each.dim() for each in others):
                raise RuntimeError(f"{function}: Expected all tensors to be on the same device")
        plain = tree_map_only(Away, lambda tensor: tensor.inner, (args, dict(kwargs)))
        plain[1].pop("device", None)
        result = function(*plain[0], **plain[1])
        if kind is torch.ops.aten.copy_ and not isinstance(args[0], Away):
            return args[0]
        return return_and_correct_aliasing(function, args, kwargs, tree_map_only(Tensor, Away, result))


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return Away(x.detach().clone())

    @staticmethod
    def backward(_, gradient):
        return gradient.inner.clone()


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.inner.detach().clone()

    @staticmethod
    def backward(_, gradient):
        return Away(gradient.clone())


def moved(x: Tensor, device: torch.device | None, dtype: torch.dtype | None = None, *, copy: bool = False) -> Tensor:
    """Return a tensor in another place, or of another type, with the graph; itself if nothing changes."""
    result = x
    if device is not None and (device.type == "cuda") != isinstance(x, Away):
        result = (_Fetch if isinstance(x, Away) else _Send).apply(x)
        result = result if x.requires_grad else result.detach()
    if dtype is not None and dtype != result.dtype:
        with torch._C.DisableTorchFunction():
            result = result.to(dtype)
    return x.clone() if copy and result is x else result


def _destination(args: Iterable[Any], kwargs: Mapping[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """Return what the arguments of `Tensor.to` ask for."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for each in args:
        if isinstance(each, Tensor):
            device, dtype = THERE if isinstance(each, Away) else HERE, each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, str | torch.device):
            device = each
    return None if device is None else torch.device(device), dtype


class Elsewhere(TorchFunctionMode):
    """Lets ``device="cuda"`` be a card that is not there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        x = args[0] if args else None
        away = isinstance(x, Away)
        if function is Tensor.to:
            return moved(x, *_destination(args[1:], kwargs), copy=kwargs.get("copy", False))
        if function is Tensor.cpu:
            return moved(x, HERE)
        if function is Tensor.device.__get__:
            return THERE if away else HERE
        if away and function in {Tensor.tolist, F.one_hot}:  # these look for the values, not for an operation
            result = function(x.inner, *args[1:], **kwargs)
            return Away(result) if isinstance(result, Tensor) else result
        if away and function in {Tensor.numpy, Tensor.__array__}:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            return self._made(function, args, {**kwargs, "device": HERE})
        return function(*args, **kwargs)

    @staticmethod
    def _made(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return a new tensor on the card."""
        if kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if function is torch.as_tensor and isinstance(args[0], Tensor):
            return moved(args[0], THERE)
        trained = kwargs.pop("requires_grad", False)
        args = tuple(each.inner if isinstance(each, Away) else each for each in args)
        return Away(function(*args, **kwargs)).requires_grad_(trained)
