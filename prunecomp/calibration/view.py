"""The model as a plan says it is: source weights, live layers, and the plan's edits applied.

The model's own code runs, unchanged: its list of layers is swapped for recorders, which learn
what arguments each layer is called with, or for an injector, which puts a hidden state where
the last layer's output would be. So embeddings, masks, rotary tables, final norms and heads
need no code here, whatever the architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunecomp.checkpoint.parameters import ParameterMap
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError
from prunecomp.fold import Edit, compile_edits
from prunecomp.plan import PrunePlan


class _Recorder(nn.Module):
    """Stands for a layer: keeps the arguments of the call and passes the stream on."""

    def __init__(self, layer: nn.Module, *, as_tuple: bool) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple, so that it is not registered as a child
        self._as_tuple = as_tuple
        self.hidden: torch.Tensor | None = None
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask layers for attributes such as attention_type
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.call = hidden, (args, kwargs)
        return (hidden,) if self._as_tuple else hidden


class _Injector(nn.Module):
    """Stands for all layers: answers with a given stream."""

    def __init__(self, hidden: torch.Tensor, layer: nn.Module, *, as_tuple: bool) -> None:
        super().__init__()
        self._hidden, self._layer, self._as_tuple = (hidden,), (layer,), as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor]:
        return self._hidden if self._as_tuple else self._hidden[0]


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
        self._parameters = ParameterMap(self.model, checkpoint.dense)
        path, _, self._list_name = checkpoint.layers_path.rpartition(".")
        self._parent = self.model.get_submodule(path)
        self._layers = tuple(getattr(self._parent, self._list_name))
        self._as_tuple = self._returns_tuple()
        self._calls: dict[tuple[int, ...], list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.no_grad()
    def _returns_tuple(self) -> bool:
        """Whether layers answer with a tuple, as some older architectures still do."""
        found: list[bool] = []
        hook = self._layers[0].register_forward_hook(
            lambda module, args, output: found.append(isinstance(output, tuple))
        )
        with hook:
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
        with self._layers_as(recorders):
            self.model.base_model(input_ids=input_ids, use_cache=False)
        self._calls[tuple(input_ids.shape)] = [recorder.call for recorder in recorders]
        hidden = recorders[0].hidden
        assert hidden is not None
        return hidden

    def run_layer(self, original: int, hidden: torch.Tensor) -> torch.Tensor:
        """Output [n, t, d] of one layer; `embed` must have seen the shape [n, t] before."""
        args, kwargs = self._calls[tuple(hidden.shape[:2])][original]
        out = self._layers[original](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, t, vocabulary] of the stream that leaves the last layer."""
        injector = _Injector(hidden, self._layers[0], as_tuple=self._as_tuple)
        with self._layers_as([injector]):
            return self.model(input_ids=input_ids, use_cache=False).logits

    def apply(self, plan: PrunePlan) -> None:
        """Makes weights and live layers those of `plan`.

        Each changed weight is computed from its source tensors in the files' dtypes and then
        converted, so it has the value that will be written.
        """
        family, checkpoint = self.checkpoint.family, self.checkpoint
        edits = compile_edits(plan, family, checkpoint, tied=checkpoint.tied, held=checkpoint.held)
        stale = set()
        for edit in edits:
            before = self._edits.get(edit.source)
            if edit.is_identity if before is None else edit == before:
                continue
            self._edits[edit.source] = edit
            stale.add(edit.source)
        dense = checkpoint.dense
        weights = [name for name in dense if not stale.isdisjoint(dense.sources(name))]
        for group in self._parameters.groups_of(weights):
            made = self._parameters.convert(
                group, {n: dense.value(n, self._edited) for n in group.sources}
            )
            for name, value in made.items():
                self.model.get_parameter(name).data.copy_(value)
        self.live = plan.kept

    def _edited(self, name: str) -> torch.Tensor:
        """A tensor of the files as the plan wants it."""
        tensor = self.checkpoint[name]
        edit = self._edits.get(name)
        return tensor if edit is None else edit.apply(tensor)


class _Later:
    """A weight that is computed when the model takes it, as a slice of a file is read then."""

    def __init__(self, weights: Mapping[str, torch.Tensor], name: str) -> None:
        self._weights, self._name = weights, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._weights[self._name][index]


def _read(checkpoint: Checkpoint, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The stock model from the files, or where they are quantised from what they stand for."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    if checkpoint.quantized is None:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint.path, trust_remote_code=False, local_files_only=True, **options
        )
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    if hasattr(config, checkpoint.quantized.key):
        delattr(config, checkpoint.quantized.key)  # what it builds is not quantised
    weights = {name: _Later(checkpoint.dense, name) for name in checkpoint.dense}
    stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return stock.from_pretrained(None, config=config, state_dict=weights, **options)


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = _read(
            checkpoint, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
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
