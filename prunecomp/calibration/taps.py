"""Reads inside a layer while it runs, through hooks; the layer's own code is untouched.

Letters: n samples, t tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prunecomp.calibration.sites import Between, WriterInput
from prunecomp.errors import UnsupportedModelError

#: How near the step to the stream between sub-blocks is to what the first one writes, as a cosine.
_SAME_DIRECTION = 0.99

Tap = Between | WriterInput


class ExpertRows:
    """What one expert reads of a batch: of each sample, the tokens that are routed to it.

    Rows are computed when they are asked for, by the plain code of the module of all experts.
    """

    def __init__(
        self, module: nn.Module, leaf: str, expert: int, arguments: Sequence[torch.Tensor]
    ) -> None:
        """Takes what the module was called with, each [n, t, ...]."""
        self._module, self._leaf, self._expert = module, leaf, expert
        self._arguments = arguments

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._arguments[0])

    @property
    def tokens(self) -> int:
        """Of each sample, routed here or elsewhere."""
        return self._arguments[0].shape[1]

    def of(self, sample: int, mask: torch.Tensor | None) -> torch.Tensor:
        """Of one sample's tokens where `mask` [t] bool is set (None: all): [rows, in]."""
        chosen = [v[sample] if mask is None else v[sample][mask] for v in self._arguments]
        weight, forward = getattr(self._module, self._leaf), type(self._module).forward
        with torch.no_grad(), _Products(weight, self._expert) as products:
            getattr(forward, "__wrapped__", forward)(self._module, *chosen)
        if products.rows:
            return torch.cat(products.rows)
        d = chosen[0].shape[-1]
        return chosen[0].new_empty(0, weight.shape[1] if weight.shape[2] == d else weight.shape[2])


#: What is read, by where: [n, t, d].
Tapped = dict[Tap, "torch.Tensor | ExpertRows"]


@contextlib.contextmanager
def tapped(
    layer: nn.Module, taps: Collection[Tap], writers: Sequence[str], hidden: torch.Tensor
) -> Iterator[Tapped]:
    """What these taps read when `layer` runs once in the block; it is there when the block ends.

    Args:
        taps: all of this layer.
        writers: relative names of the weights that write to the stream, in the order of the layer.
        hidden: [n, t, d] that enters the layer.

    Raises:
        UnsupportedModelError: the layer has no such place.
    """
    found: Tapped = {}
    with contextlib.ExitStack() as stack:
        for tap in taps:
            if isinstance(tap, Between):
                stack.enter_context(_between(layer, tap, writers, hidden, found))
            elif tap.expert is not None:
                stack.enter_context(_expert_input(layer, tap, hidden, found))
            else:
                stack.enter_context(_module_input(layer, tap, hidden, found))
        yield found
    for tap in taps:
        if tap not in found:
            raise UnsupportedModelError(
                f"the layers of {type(layer).__name__} have no {_name(tap)}; choose a metric and a "
                "compensation that do not read it"
            )


def _name(tap: Tap) -> str:
    if isinstance(tap, Between):
        return "stream between attention and MLP"
    expert = "" if tap.expert is None else f" of expert {tap.expert}"
    return f"input of {tap.writer}{expert}"


def _first(args: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The first tensor that a module is called with."""
    values = (*args, *kwargs.values())
    return next((value for value in values if isinstance(value, torch.Tensor)), None)


@contextlib.contextmanager
def _module_input(
    layer: nn.Module, tap: WriterInput, hidden: torch.Tensor, found: Tapped
) -> Iterator[None]:
    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        value = _first(args, kwargs)
        if value is not None and value.shape[:-1].numel() == hidden.shape[:2].numel():
            found[tap] = value.reshape(*hidden.shape[:2], -1)

    module = layer.get_submodule(tap.writer.rpartition(".")[0])
    with module.register_forward_pre_hook(note, with_kwargs=True):
        yield


@contextlib.contextmanager
def _between(
    layer: nn.Module, tap: Between, writers: Sequence[str], hidden: torch.Tensor, found: Tapped
) -> Iterator[None]:
    """The input of what runs first behind the first sub-block, if it is the stream.

    It is where the step from the layer's input has the direction of what the sub-block writes.
    Sub-blocks side by side read the layer's input, or that normed.
    """
    written: list[torch.Tensor] = []
    candidates: list[torch.Tensor] = []

    def wrote(module: nn.Module, args: Any, output: Any) -> None:
        written.append(output[0] if isinstance(output, tuple) else output)

    def reads(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        value = _first(args, kwargs)
        if written and not candidates and value is not None:
            candidates.append(value)

    block = layer.get_submodule(writers[0].partition(".")[0])
    others = (module for module in layer.modules() if module is not layer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(block.register_forward_hook(wrote))
        for module in others:
            stack.enter_context(module.register_forward_pre_hook(reads, with_kwargs=True))
        yield
    if candidates and candidates[0].shape == hidden.shape == written[0].shape:
        stream, wrote_to = candidates[0], written[0].float()
        step = (stream.float() - hidden.float()).flatten()
        cosine = torch.nn.functional.cosine_similarity(step, wrote_to.flatten(), dim=0)
        if stream is written[0] or float(cosine) > _SAME_DIRECTION:
            found[tap] = stream


class _Products(TorchFunctionMode):
    """Keeps what is multiplied by one slice of a weight [experts, ...]."""

    def __init__(self, weight: torch.Tensor, expert: int) -> None:
        super().__init__()
        self._address = weight[expert].data_ptr()
        self.rows: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if len(args) > 1 and all(isinstance(value, torch.Tensor) for value in args[:2]):
            left, right = args[:2]
            if left.is_floating_point() and right.ndim == 2 and left.ndim == 2:
                with torch._C.DisableTorchFunction():
                    if right.data_ptr() == self._address:
                        self.rows.append(left)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _expert_input(
    layer: nn.Module, tap: WriterInput, hidden: torch.Tensor, found: Tapped
) -> Iterator[None]:
    path, _, leaf = tap.writer.rpartition(".")
    module, expert = layer.get_submodule(path), tap.expert
    assert expert is not None

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        values = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
        if all(len(v) == hidden.shape[:2].numel() for v in values):
            each = [v.view(*hidden.shape[:2], *v.shape[1:]) for v in values]
            found[tap] = ExpertRows(module, leaf, expert, each)

    with module.register_forward_pre_hook(note, with_kwargs=True):
        yield
