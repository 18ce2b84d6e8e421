"""The weights of a model of transformers, made from the files for as long as they are needed.

The model is a skeleton of the stock class: its parameters take no memory. What belongs together,
one layer or all that is outside of the layers, is made from the files with the plan's edits
applied, put into the skeleton, and dropped after use, or kept where the whole model fits. On a CPU
whose compute dtype is that of the files, nothing is copied: tensors are pages of the files.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

from prunecomp.checkpoint.account import match_parameters, refuse_faults
from prunecomp.checkpoint.files import stock_config, why_not_built
from prunecomp.checkpoint.index import TensorSpec
from prunecomp.checkpoint.layout import TORCH_DTYPES
from prunecomp.checkpoint.parameters import Group, ParameterMap
from prunecomp.checkpoint.reader import Checkpoint, TensorFiles
from prunecomp.errors import CheckpointError
from prunecomp.families.base import any_expert
from prunecomp.fold import Edit, Read

#: The part that is outside of the layers; layers are parts by their original index.
OUTSIDE = -1
#: What calls return is for the caller to say, whatever a published config says.
_CALLS = {
    "output_attentions": False, "output_hidden_states": False, "output_router_logits": False,
    "return_dict": True, "use_cache": True,
}  # fmt: skip


def part_of(parameter: str, layers_path: str) -> int:
    """The part that a parameter of the model belongs to."""
    found = re.match(re.escape(layers_path) + r"\.(\d+)\.", parameter)
    return int(found[1]) if found else OUTSIDE


def _not_loaded(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    reason = why_not_built(error, checkpoint.config)
    return CheckpointError(
        f"{checkpoint.path}: transformers cannot load it ({reason}); check config and weights"
    )


def skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The stock model, in eval mode, without memory for parameters; buffers have their values.

    Raises:
        CheckpointError: transformers cannot build it from the config.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        config = stock_config(checkpoint.path)
        if checkpoint.quantized is not None and hasattr(config, checkpoint.quantized.key):
            delattr(config, checkpoint.quantized.key)  # what is built is not quantised
        for key, value in _CALLS.items():
            if hasattr(config, key):
                setattr(config, key, value)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        for module in model.modules():
            if module._buffers:  # computed anew, as from_pretrained does, now in default precision
                model._init_weights(module)
    except Exception as error:  # values that fit no model can raise anything in there
        raise _not_loaded(checkpoint, error) from error
    return model.eval().requires_grad_(False)


class Version(contextlib.AbstractContextManager):
    """One of several values of a part; see `Weights.versions`."""

    def __init__(self, weights: Weights, made: Mapping[str, torch.Tensor]) -> None:
        self._weights, self.made = weights, made

    def __enter__(self) -> None:
        self._weights._put(self.made)

    def __exit__(self, *error: object) -> None:
        """Leaves it in the model until another one, or none, takes its place."""


class Weights:
    """Parameters of a skeleton, part by part."""

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        resident: bool,
        placement: Mapping[int, torch.device] | None = None,
    ) -> None:
        """Checks that the files have every weight, and loads all of them if `resident`.

        Args:
            placement: of parts that are not on `device`.

        Raises:
            CheckpointError: weights are missing or misshapen.
        """
        self._model, self._checkpoint, self._resident = model, checkpoint, resident
        self._device, self._placement = device, placement or {}
        try:
            self._map = ParameterMap(model, checkpoint.dense)
        except ValueError as error:  # names with numbers that are none
            raise _not_loaded(checkpoint, error) from error
        self._edits: dict[str, Edit] = {}  # by the tensor of the files that they replace
        self._specs: Mapping[str, TensorSpec] = checkpoint.index
        # Parameters that models keep in float32, as from_pretrained would.
        kept = model._get_dtype_plan(dtype)
        self._kept = re.compile("|".join(p.replace("*", ".*") for p in kept)) if kept else None
        self._check_shapes()
        for module in model.modules():
            for leaf, buffer in module.named_buffers(recurse=False):
                module._buffers[leaf] = buffer.to(device)
        self._slots = self._find_slots()
        self._groups: dict[int, list[Group]] = {OUTSIDE: []}
        for group in self._map:
            part = part_of(group.target, checkpoint.layers_path)
            self._groups.setdefault(part, []).append(group)
        self._uses: dict[int, int] = {}
        self._empty = dict(model.named_parameters(remove_duplicate=False))
        self._pool: ThreadPoolExecutor | None = None
        self._coming: tuple[int, Future[dict[str, torch.Tensor]]] | None = None
        if resident:
            for part in self._groups:
                self._put(self._make(self._groups[part], part))

    def _check_shapes(self) -> None:
        """Ties what the files hold once, and refuses what they do not hold at all."""
        self._dtypes = {name: value.dtype for name, value in self._model.state_dict().items()}
        matched = match_parameters(self._model, self._map, self._checkpoint)
        self._targets = matched.targets
        refuse_faults(self._checkpoint, matched)

    def _find_slots(self) -> dict[str, list[tuple[nn.Module, str]]]:
        """Where each parameter goes: to its own place, and to those that are tied to it."""
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        names: dict[str, int] = {}
        for path, module in self._model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                places.setdefault(id(parameter), []).append((module, leaf))
                names[f"{path}.{leaf}" if path else leaf] = id(parameter)
        return {name: places[key] for name, key in names.items()}

    def writers(self, part: int) -> tuple[str, ...]:
        """Weights of a layer that write to the stream: names in memory, relative to the layer."""
        family, found = self._checkpoint.family, {}
        for group in self._groups[part]:
            located = family.layer_of(group.sources[0])
            if located is None or located[1].endswith(".bias") or family.power(located[1]) != 1:
                continue
            prefix = f"{self._checkpoint.layers_path}.{part}."
            order = family.writers.index(any_expert(located[1]))
            found[group.target.removeprefix(prefix)] = order
        return tuple(sorted(found, key=found.__getitem__))

    def device_of(self, part: int) -> torch.device:
        """Where the part's weights are when they are loaded."""
        return self._placement.get(part, self._device)

    @contextlib.contextmanager
    def loaded(self, part: int) -> Iterator[None]:
        """The part's parameters have their values in this block, and at least that long."""
        if not self._resident and part not in self._uses:
            self._put(self._take(part))
        self._uses[part] = self._uses.get(part, 0) + 1
        try:
            yield
        finally:
            self._uses[part] -= 1
            if not self._uses[part]:
                del self._uses[part]
                if not self._resident:
                    self._drop(part)

    def prefetch(self, part: int) -> None:
        """Starts to make a part that is needed next, while others are in use."""
        if self._resident or part in self._uses or self._coming is not None:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")
        self._coming = part, self._pool.submit(self._fetch, part)

    def apply(self, edits: Iterable[Edit], specs: Mapping[str, TensorSpec]) -> None:
        """Weights have the values that these edits give; those in use are replaced now.

        Args:
            specs: of all that the edits read.
        """
        stale = set()
        for edit in edits:
            before = self._edits.get(edit.replaces)
            if edit == before or (before is None and not edit.changes):
                continue
            self._edits[edit.replaces] = edit
            stale.add(edit.replaces)
        self._specs = specs
        self._forget_coming()
        if not self._resident or not stale:
            return
        dense = self._checkpoint.dense
        weights = [name for name in dense if not stale.isdisjoint(dense.sources(name))]
        touched = {group.target for group in self._map.groups_of(weights)}
        for part, groups in self._groups.items():
            if any(group.target in touched for group in groups):
                # Mapped ones are mapped anew, so that pages of the replaced ones are given back.
                again = [g for g in groups if g.target in touched or self._is_mapped(g)]
                self._put(self._make(again, part))

    def _is_mapped(self, group: Group) -> bool:
        """Whether the parameter is a tensor of the files as it stands there."""
        return group.converter is None and self._device.type == "cpu"

    def _forget_coming(self) -> None:
        if self._coming is not None:
            self._coming[1].result()
            self._coming = None

    def _take(self, part: int) -> dict[str, torch.Tensor]:
        if self._coming is not None and self._coming[0] == part:
            made = self._coming[1].result()
            self._coming = None
            return made
        self._forget_coming()
        return self._make(self._groups[part], part)

    def _fetch(self, part: int) -> dict[str, torch.Tensor]:
        """`_make`, after asking the system to read the files ahead."""
        groups = self._groups[part]
        if hasattr(os, "posix_fadvise"):
            dense, index = self._checkpoint.dense, self._checkpoint.index
            names = [s for g in groups for n in g.sources for s in dense.sources(n)]
            for spec in (index[name] for name in names):
                with spec.file.open("rb") as file:
                    os.posix_fadvise(
                        file.fileno(), spec.offset, spec.nbytes, os.POSIX_FADV_WILLNEED
                    )
        if self._device.type != "cuda":
            return self._make(groups, part)
        side = torch.cuda.Stream(self._device)
        with torch.cuda.stream(side):
            made = self._make(groups, part)
        side.synchronize()  # this thread waits, the one that computes does not
        for value in made.values():
            value.record_stream(torch.cuda.default_stream(value.device))
        return made

    def _make(
        self,
        groups: Iterable[Group],
        part: int,
        *,
        edits: Mapping[str, Edit] | None = None,
        read: Read | None = None,
    ) -> dict[str, torch.Tensor]:
        """The parameters of some groups, by name.

        Args:
            edits: that are applied; None for those of the plan.
            read: of tensors; None reads each as often as it is asked for.
        """
        edits = self._edits if edits is None else edits
        source = TensorFiles(self._specs) if read is None else read
        device = self.device_of(part)

        def edited(name: str) -> torch.Tensor:
            edit = edits.get(name)
            if edit is None or not edit.changes:
                return source(name)
            once = read or TensorFiles(self._specs)  # so that pages are given back at once
            return edit.apply(once, TORCH_DTYPES[edit.output_spec(self._specs).dtype])

        made: dict[str, torch.Tensor] = {}
        for group in groups:
            kept = self._kept is not None and self._kept.search(group.target)
            dtype = torch.float32 if kept else self._dtypes[group.target]
            dense = self._checkpoint.dense
            tensors = {n: dense.value(n, edited).to(dtype) for n in group.sources}
            for name, value in self._map.convert(group, tensors).items():
                pinned = value.pin_memory() if device.type == "cuda" else value
                made[name] = pinned.to(device, non_blocking=True)
        return made

    @contextlib.contextmanager
    def versions(self, part: int) -> Iterator[tuple[Version, Version]]:
        """The part as the source has it, and as the plan's edits make it; one if they are the same.

        Each tensor of the files is read once. A version is in the model inside of its own ``with``.
        """
        dense, groups = self._checkpoint.dense, self._groups[part]
        edits = {name for name, edit in self._edits.items() if edit.changes}
        changed = [
            g for g in groups
            if not edits.isdisjoint(s for n in g.sources for s in dense.sources(n))
        ]  # fmt: skip
        read = functools.cache(TensorFiles(self._specs))
        plain = Version(self, self._make(changed, part, edits={}, read=read))
        self._uses[part] = self._uses.get(part, 0) + 1
        if self._resident:
            edited = Version(self, self._now(changed))
        else:
            self._put(self._make([g for g in groups if g not in changed], part, read=read))
            edited = Version(self, self._make(changed, part, read=read))
        try:
            yield (plain, edited) if changed else (plain, plain)
        finally:
            self._put(edited.made)
            self._uses[part] -= 1
            if not self._uses[part]:
                del self._uses[part]
                if not self._resident:
                    self._drop(part)

    def _now(self, groups: Iterable[Group]) -> dict[str, torch.Tensor]:
        """The parameters of these groups that are in the model."""
        found = {}
        for name in (n for group in groups for n in self._targets[group.target]):
            for module, leaf in self._slots.get(name, ())[:1]:
                found[name] = module._parameters[leaf].data
        return found

    def _put(self, made: Mapping[str, torch.Tensor]) -> None:
        for name, value in made.items():
            if name not in self._slots:  # a buffer that is stored; it is small and stays
                path, _, leaf = name.rpartition(".")
                self._model.get_submodule(path)._buffers[leaf] = value
                continue
            parameter = nn.Parameter(value, requires_grad=False)
            for module, leaf in self._slots[name]:
                module._parameters[leaf] = parameter

    def _drop(self, part: int) -> None:
        for group in self._groups[part]:
            for name in self._targets[group.target]:
                for module, leaf in self._slots.get(name, ()):
                    module._parameters[leaf] = self._empty[name]
