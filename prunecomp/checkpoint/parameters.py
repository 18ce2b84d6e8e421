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
        """Reads names only; `model` may be on the meta device."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {p: converter for converter in converters for p in converter.source_patterns}
        known, prefix = model.state_dict(), model.base_model_prefix
        self._model = model
        self._groups: dict[str, Group] = {}
        self._of: dict[str, Group] = {}
        self.unused: list[str] = []
        for name in sorted(names, key=dot_natural_key):
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

    def convert(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters that a group becomes; works on the meta device, for shapes alone."""
        if group.converter is None:
            return {group.target: tensors[group.sources[-1]]}
        converter = copy.deepcopy(group.converter)
        for name, pattern in zip(group.sources, group.patterns, strict=True):
            converter.add_tensor(group.target, name, pattern, tensors[name])
        made = converter.convert(group.target, model=self._model, config=self._model.config)
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}
