"""The model as a plan says it is: source weights, live layers, and the plan's edits applied.

The model's own code runs, unchanged: its list of layers is swapped for recorders, which learn
what arguments each layer is called with, or for an injector, which puts a hidden state where
the last layer's output would be. So embeddings, masks, rotary tables, final norms and heads
need no code here, whatever the architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunecomp.calibration.taps import Tap, Tapped, tapped
from prunecomp.calibration.weights import OUTSIDE, Weights, skeleton
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.checkpoint.sidecar import sources_of
from prunecomp.fold import compile_edits
from prunecomp.plan import PrunePlan


class _StandIn(nn.Module):
    """Stands for a layer, and has its attributes: models ask layers for their attention type."""

    def __init__(self, layer: nn.Module, *, as_tuple: bool) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, so that it is not registered as a child
        self._as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def _answer(self, hidden: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor]:
        return (hidden,) if self._as_tuple else hidden


class _Recorder(_StandIn):
    """Keeps the arguments of the call and passes the stream on."""

    def __init__(self, layer: nn.Module, *, as_tuple: bool) -> None:
        super().__init__(layer, as_tuple=as_tuple)
        self.hidden: torch.Tensor | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(
        self, hidden: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor]:
        self.hidden, self.call = hidden, (args, kwargs)
        return self._answer(hidden)


class _Injector(_StandIn):
    """Stands for all layers: answers with a given stream."""

    def __init__(self, hidden: torch.Tensor, layer: nn.Module, *, as_tuple: bool) -> None:
        super().__init__(layer, as_tuple=as_tuple)
        self._hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor]:
        return self._answer(self._hidden)


@contextlib.contextmanager
def _one_text_each() -> Iterator[None]:
    """In this block, transformers does not look for several texts in one sample.

    Where it makes masks it would, in positions that are on the device, and so wait for that.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    look = getattr(masking_utils, name, None)  # of 5.0 to 5.19; without it there is a wait at most
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, look)


def _moved(value: Any, device: torch.device) -> Any:
    """The value with all tensors in it on another device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(each, device) for each in value)
    return value


class PlannedModel:
    """A causal LM whose weights and live layers follow a plan.

    Attributes:
        live: original indices of the layers that are left, ascending.
        resident: whether all weights stay in memory; else a part at a time, from the files.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        resident: bool = True,
        model: nn.Module | None = None,
        placement: Mapping[int, torch.device] | None = None,
    ) -> None:
        """Opens the model as transformers' stock class; remote code is never run.

        Args:
            model: its `skeleton`, where that is there already.
            placement: of layers that are on another device; all else, and the stream, is on
                `device`.

        Raises:
            CheckpointError: transformers cannot build it, or weights are missing.
        """
        self.checkpoint, self.device, self.resident = checkpoint, device, resident
        self.model = skeleton(checkpoint, dtype) if model is None else model
        self.weights = Weights(
            self.model, checkpoint, device=device, dtype=dtype, resident=resident,
            placement=placement,
        )  # fmt: skip
        self.live: tuple[int, ...] = tuple(range(checkpoint.num_hidden_layers))
        path, _, self._list_name = checkpoint.layers_path.rpartition(".")
        self._parent = self.model.get_submodule(path)
        self._layers = tuple(getattr(self._parent, self._list_name))
        self._as_tuple = self._returns_tuple()
        self._calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.no_grad()
    def _returns_tuple(self) -> bool:
        """Whether layers answer with a tuple, as some older architectures still do."""
        found: list[bool] = []
        first = self._layers[0]
        hook = first.register_forward_hook(
            lambda module, args, output: found.append(isinstance(output, tuple))
        )
        with hook, self.outside(), self.loaded(0), self._layers_as([first]):
            token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            self.model.base_model(input_ids=token, use_cache=False)
        return found[0]

    @property
    def vocabulary(self) -> int:
        """Number of logits per token."""
        return self.model.config.vocab_size

    def layer(self, original: int) -> nn.Module:
        """The module of the layer with this original index."""
        return self._layers[original]

    def loaded(self, original: int) -> contextlib.AbstractContextManager[None]:
        """The layer's weights are in memory in this block."""
        return self.weights.loaded(original)

    def outside(self) -> contextlib.AbstractContextManager[None]:
        """Embeddings, final norm and head are in memory in this block."""
        return self.weights.loaded(OUTSIDE)

    def prefetch(self, original: int | None) -> None:
        """Gets ready for a layer that is needed next; for None, for what is outside of them."""
        self.weights.prefetch(OUTSIDE if original is None else original)

    @contextlib.contextmanager
    def _layers_as(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        original = getattr(self._parent, self._list_name)
        setattr(self._parent, self._list_name, nn.ModuleList(modules))
        try:
            yield
        finally:
            setattr(self._parent, self._list_name, original)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Boundary 0 [n, t, d] of `input_ids` [n, t], in the compute dtype.

        Also learns with which arguments the model calls each layer for this shape.
        """
        recorders = [_Recorder(layer, as_tuple=self._as_tuple) for layer in self._layers]
        with self.outside(), self._layers_as(recorders), _one_text_each():
            self.model.base_model(input_ids=input_ids, use_cache=False)
        self._calls[tuple(input_ids.shape)] = [recorder.call for recorder in recorders]
        hidden = recorders[0].hidden
        assert hidden is not None
        return hidden

    def run_layer(self, original: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output [n, t, d] of one layer; `embed` must have seen the shape [n, t] before."""
        args, kwargs = self._calls[tuple(hidden.shape[:2])][original]
        device = self.weights.device_of(original)
        if device != self.device:
            hidden, args, kwargs = _moved((hidden, args, kwargs), device)
        with self.loaded(original):
            out = self._layers[original](hidden, *args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        return out.to(self.device)

    def run_tapped(
        self, original: int, hidden: torch.Tensor, taps: Collection[Tap] = ()
    ) -> tuple[Tapped, torch.Tensor]:
        """`run_layer`, and what is read at places in the layer on the way.

        Raises:
            UnsupportedModelError: the layer has no such place.
        """
        if not taps:
            return {}, self.run_layer(original, hidden)
        layer, writers = self._layers[original], self.writers(original)
        with tapped(layer, taps, writers, hidden) as found:
            out = self.run_layer(original, hidden)
        moved = {
            t: v.to(self.device) if isinstance(v, torch.Tensor) else v for t, v in found.items()
        }
        return moved, out

    def writers(self, original: int) -> tuple[str, ...]:
        """The weights of a layer that write to the stream, in the order of the family.

        Names are those in memory, relative to the layer.
        """
        return self.weights.writers(original)

    def logits(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, t, vocabulary] of the stream that leaves the last layer."""
        injector = _Injector(hidden, self._layers[0], as_tuple=self._as_tuple)
        with self.outside(), self._layers_as([injector]), _one_text_each():
            return self.model(input_ids=input_ids, use_cache=False).logits

    def apply(self, plan: PrunePlan) -> None:
        """Makes weights and live layers those of `plan`.

        Each changed weight is computed from its source tensors in the files' dtypes and then
        converted, so it has the value that will be written.
        """
        family, checkpoint = self.checkpoint.family, self.checkpoint
        sources = sources_of(checkpoint, plan)
        edits = compile_edits(plan, family, checkpoint, tied=checkpoint.tied, held=checkpoint.held)
        self.weights.apply(edits, sources)
        self.live = plan.kept
