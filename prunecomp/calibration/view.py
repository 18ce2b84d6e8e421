"""The model as a plan says it is: source weights, live layers, and the plan's edits applied.

The model's own code runs, unchanged: its list of layers is swapped for recorders, which learn
what arguments each layer is called with, or for an injector, which puts a hidden state where
the last layer's output would be. So embeddings, masks, rotary tables, final norms and heads
need no code here, whatever the architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError
from prunecomp.fold import Edit, compile_edits
from prunecomp.plan import PrunePlan


class _Recorder(nn.Module):
    """Stands for a layer: keeps the arguments of the call and passes the stream on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, so that it is not registered as a child
        self.hidden: torch.Tensor | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask layers for attributes such as attention_type
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.call = hidden, (args, kwargs)
        return hidden


class _Injector(nn.Module):
    """Stands for all layers: answers with a given stream."""

    def __init__(self, hidden: torch.Tensor, layer: nn.Module) -> None:
        super().__init__()
        self._hidden, self._layer = (hidden,), (layer,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._hidden[0]


class PlannedModel:
    """A causal LM in memory whose weights and live layers follow a plan.

    Attributes:
        live: original indices of the layers that are left, ascending.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        """Loads the whole model with transformers' stock class; remote code is never run.

        Raises:
            CheckpointError: transformers cannot load it, or finds weights missing.
        """
        self.checkpoint = checkpoint
        self.model = _load(checkpoint, dtype).to(device).eval()
        self.device = device
        self.live: tuple[int, ...] = tuple(range(checkpoint.num_hidden_layers))
        self._edits: dict[str, Edit] = {}
        path, _, self._list_name = checkpoint.family.layers.rpartition(".")
        self._parent = self.model.get_submodule(path)
        self._layers = tuple(getattr(self._parent, self._list_name))
        self._calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def layer(self, original: int) -> nn.Module:
        """The module of the layer with this original index."""
        return self._layers[original]

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
        recorders = [_Recorder(layer) for layer in self._layers]
        with self._layers_as(recorders):
            self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
        self._calls[tuple(input_ids.shape)] = [recorder.call for recorder in recorders]
        hidden = recorders[0].hidden
        assert hidden is not None
        return hidden

    def run_layer(self, original: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output [n, t, d] of one layer; `embed` must have seen the shape [n, t] before."""
        args, kwargs = self._calls[tuple(hidden.shape[:2])][original]
        out = self._layers[original](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out  # a tuple in older transformers

    def logits(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, t, vocabulary] of the stream that leaves the last layer."""
        with self._layers_as([_Injector(hidden, self._layers[0])]):
            return self.model(input_ids=input_ids, use_cache=False).logits

    def apply(self, plan: PrunePlan) -> None:
        """Makes weights and live layers those of `plan`.

        Each changed weight is computed from its source tensor in the file's dtype and then
        converted, so it has the value that will be written.
        """
        family, checkpoint = self.checkpoint.family, self.checkpoint
        for edit in compile_edits(plan, family, checkpoint, tied=checkpoint.tied):
            before = self._edits.get(edit.source)
            if edit.is_identity if before is None else edit == before:
                continue
            parameter = self.model.get_parameter(edit.source)
            parameter.data.copy_(edit.apply(checkpoint[edit.source]))
            self._edits[edit.source] = edit
        self.live = plan.kept


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=dtype, trust_remote_code=False, local_files_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # values that fit no model can raise anything in there
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"{checkpoint.path}: transformers cannot load it ({first}); check config and weights"
        ) from error
    absent = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if absent:
        raise CheckpointError(
            f"{checkpoint.path}: {len(absent)} weights are missing or misshapen ({absent[0]}); "
            "restore the files, or correct the config"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
