"""Names of tensors without what a wrapper of the model has left in them.

torch.compile, DistributedDataParallel, FSDP, DeepSpeed, PEFT and trainers hold the model in a
module of their own; weights that were saved from that have its name in front of theirs. No reader
loads such files, but they say without doubt what is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from prunecomp.errors import CheckpointError
from prunecomp.families.base import ModelFamily

#: Modules that wrap others at any depth; no model of transformers has one of these names.
_ANYWHERE = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_ADAPTER = re.compile(r"(?:^|\.)(?:base_layer|lora_\w+|modules_to_save|ia3_l)\.")


def plain_names(names: Iterable[str], family: ModelFamily, *, where: str) -> Mapping[str, str]:
    """``{name in the model: name in the file}`` of all tensors, in their order.

    Raises:
        CheckpointError: the names cannot be made those of one model.
    """
    found: dict[str, str] = {}
    for name in names:
        if _ADAPTER.search(name):
            raise CheckpointError(
                f"{where}: holds an adapter that is not merged ({name}); merge it first, with "
                "merge_and_unload() of PEFT, and save the result"
            )
        plain = _ANYWHERE.sub("", name)
        if plain in found:
            raise CheckpointError(
                f"{where}: holds {plain} twice, as {found[plain]} and {name}; delete one of them"
            )
        found[plain] = name
    prefix = _prefix(found, family)
    if not prefix:
        return found
    odd = [name for name in found if not name.startswith(prefix) and name != family.head]
    if odd:
        raise CheckpointError(
            f"{where}: its language model is a part named {prefix.rstrip('.')!r}, beside other "
            f"parts ({odd[0]}); compress a checkpoint of the language model alone"
        )
    return {name.removeprefix(prefix): stored for name, stored in found.items()}


def _prefix(names: Iterable[str], family: ModelFamily) -> str:
    """What stands in front of the names of layers; nothing where they are as they should be."""
    bare = family.layers.removeprefix(family.base_prefix)
    wrapped = ""
    for layers in dict.fromkeys((family.layers, bare)):
        pattern = re.compile(rf"(|.+?\.){re.escape(layers)}\.\d+\.")
        for name in names:
            match = pattern.match(name)
            if match is not None and not match[1]:
                return ""
            if match is not None and not wrapped:
                wrapped = match[1]
    return wrapped
