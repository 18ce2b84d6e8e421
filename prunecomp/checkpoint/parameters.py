"""Which tensors of the files become which parameters in memory, by transformers' own rules.

Most parameters are one tensor under the same name. Others are renamed, or made of several: the
experts of a layer, each a matrix in the files, are one tensor in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunecomp.errors import CheckpointError


@dataclass
class Group:
    """Tensors that are converted together.

    Attributes:
        target: the (first) parameter that they become.
        sources: names in the files, in the order in which they are put together.
    """

    target: str
    converter: Any = None
    sources: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)


class ParameterMap:
    """The groups of a checkpoint's tensors for one model of transformers.

    Attributes:
        unused: tensors that the model has no parameter for; transformers ignores them, too.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Reads names only; `model` may be on the meta device.

        Raises:
            CheckpointError: a tensor has a name that transformers cannot put in order.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self._rules = rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
        known, prefix = model.state_dict(), model.base_model_prefix
        self._model = model
        self._groups: dict[str, Group] = {}
        self._of: dict[str, Group] = {}
        self.unused: list[str] = []

        def order(name: str) -> Any:
            try:
                return dot_natural_key(name)
            except ValueError as error:  # it takes a superscript digit for a number
                raise CheckpointError(
                    f"tensor {name}: transformers cannot read such a name; restore the files"
                ) from error

        for name in sorted(names, key=order):
            target, pattern = rename_source_key(name, renamings, converters, prefix, known)
            if target not in known and name in known:
                target, pattern = rename_source_key(name, [], [], prefix, known)
            if target not in known:
                self.unused.append(name)
                continue
            group = self._groups.setdefault(target, Group(target, by_pattern.get(pattern)))
            group.sources.append(name)
            group.patterns.append(name if pattern is None else pattern)
            self._of[name] = group

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def groups_of(self, names: Iterable[str]) -> list[Group]:
        """The groups that hold any of `names`, each once."""
        found = {self._of[name].target: self._of[name] for name in names if name in self._of}
        return list(found.values())

    def saved_order(self) -> dict[str, int]:
        """File names in the order in which transformers saves them after it has loaded them.

        The value is the same for names that are parts of one parameter in memory, as experts may
        be: transformers never splits such a parameter between files.
        """
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        # what loading leaves in a model; without any, transformers saves in another order
        self._model._weight_conversions = [rule for rule in self._rules if rule.was_used()]
        state = self._model.state_dict()
        for name in self._model._keys_to_ignore_on_save or ():
            state.pop(name, None)
        state = remove_tied_weights_from_state_dict(state, self._model)
        saved = revert_weight_conversion(self._model, state)
        return {name: tensor.untyped_storage()._cdata for name, tensor in saved.items()}

    def dtypes(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """The dtype in which transformers holds each floating tensor, loaded as `dtype`.

        The model must have been made in `dtype`. It is another one where the model's code says
        so, as for the biases of some routers.
        """
        from transformers.core_model_loading import build_glob_alternation

        plan, state = self._model._get_dtype_plan(dtype), self._model.state_dict()
        pattern, of_group, _ = build_glob_alternation(list(plan))
        found = {}
        for group in self:
            match = pattern.search(group.target) if plan else None
            held = plan[of_group[match.lastgroup]] if match else state[group.target].dtype
            if held.is_floating_point:
                found.update(dict.fromkeys(group.sources, held))
        return found

    def convert(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that a group becomes; works on the meta device, for shapes alone."""
        if group.converter is None:
            return {group.target: tensors[group.sources[-1]]}
        converter = copy.deepcopy(group.converter)
        for name, pattern in zip(group.sources, group.patterns, strict=True):
            converter.add_tensor(group.target, name, pattern, tensors[name])
        made = converter.convert(group.target, model=self._model, config=self._model.config)
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}
