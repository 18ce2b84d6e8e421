"""A GGUF file made into the directory that transformers would save after it has loaded the file.

Names, values, config and tokenizer are transformers' own: its table of names, its processors of
tensors, its converter of tokenizers. Only the loop is ours, which holds one parameter at a time.
Source: ``transformers.modeling_gguf_pytorch_utils``, ``transformers.integrations.gguf``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import IO, Any

import numpy as np
import torch

from prunecomp.checkpoint.index import INDEX_FILE, TensorSpec
from prunecomp.checkpoint.layout import Output, Saved, Shard, split
from prunecomp.errors import CheckpointError, PruneCompError, UnsupportedModelError
from prunecomp.families import family_for
from prunecomp.fold import TensorEdit
from prunecomp.gguf.checks import check
from prunecomp.gguf.header import GgufHeader, GgufTensor
from prunecomp.gguf.tokenizer import save_tokenizer, tokenizer_of
from prunecomp.progress import Progress

_MAX_SHARD_BYTES = 50 * 10**9  # as transformers does
_CHUNK_VALUES = 1 << 22


@dataclass
class Conversion:
    """All that is decided before the first weight is read.

    Attributes:
        model: on the meta device, in bfloat16.
        names: of transformers, by those of the file.
        groups: tensors of the file that become one parameter, by its name; in file order.
        shards: what is written.
        unused: tensors and metadata that transformers has no use for.
    """

    header: GgufHeader
    model: torch.nn.Module
    tokenizer: Any
    processor: Any
    names: Mapping[str, str]
    groups: Mapping[str, list[GgufTensor]]
    shards: list[Shard]
    unused: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that `write` writes."""
        return sum(output.nbytes for shard in self.shards for output in shard.outputs)


@contextlib.contextmanager
def _by_transformers(header: GgufHeader, what: str) -> Iterator[None]:
    """Metadata with odd values can raise anything in there."""
    try:
        yield
    except PruneCompError:
        raise
    except Exception as error:
        reason = shorten(str(error) or repr(error), width=150, placeholder=" ...")
        raise UnsupportedModelError(
            f"{header.path}: transformers cannot {what} ({type(error).__name__}: {reason}); take "
            "another file of the model"
        ) from error


def prepare(header: GgufHeader) -> Conversion:
    """Checks everything but the values of the weights.

    Raises:
        UnsupportedModelError: not a model that both transformers and we can do.
        CheckpointError: the file contradicts itself.
    """
    check(header)
    settings = _settings(header)
    with _by_transformers(header, "build the model"):
        model = _meta_model(settings)
    family_for(model.config.to_dict(), where=str(header.path))
    with _by_transformers(header, "make its tokenizer"):
        tokenizer = tokenizer_of(header)
    with _by_transformers(header, "name its tensors"):
        processor, names = _names(header, model, settings)
        state, saved = _saved(model)
    groups: dict[str, list[GgufTensor]] = {}
    unused = []
    for tensor in header.tensors:
        # transformers' processors of experts look a name up without its ending
        target = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
        if target in state:
            groups.setdefault(target, []).append(tensor)
        elif target is None:
            unused.append(tensor.name)
    _check_complete(header, state, groups)
    unused += _unread(header, settings["model_type"])
    return Conversion(
        header, model, tokenizer, processor, names, groups, _shards(header, saved), unused
    )


def _unread(header: GgufHeader, model_type: str) -> list[str]:
    """Metadata of the architecture that transformers makes nothing of."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    prefix = f"{header.architecture}."
    known = {**GGUF_CONFIG_MAPPING.get(header.architecture, {})}
    known |= GGUF_CONFIG_MAPPING.get(model_type, {})
    own = [key for key in header.metadata if key.startswith(prefix)]
    return [key for key in own if key.removeprefix(prefix) not in known]


def _settings(header: GgufHeader) -> dict[str, Any]:
    """The fields of the config."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with _by_transformers(header, "read the config"):
        found = load_gguf_checkpoint(header.path, return_tensors=False)["config"]
    found.pop("_model_name_or_path", None)
    return found


def _meta_model(settings: Mapping[str, Any]) -> torch.nn.Module:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[settings["model_type"]].from_dict(dict(settings))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    return model


def _names(
    header: GgufHeader, model: torch.nn.Module, settings: dict[str, Any]
) -> tuple[Any, dict[str, str]]:
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=settings)
    return processor, get_gguf_hf_weights_map(model, processor)


def _saved(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters that are saved, as in memory and as in the files; on the meta device."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = model.state_dict()
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return state, revert_weight_conversion(model, dict(state))


def _check_complete(
    header: GgufHeader, state: Mapping[str, torch.Tensor], groups: Mapping[str, list[GgufTensor]]
) -> None:
    """Every parameter gets all of its values; transformers would make some up."""
    for name, parameter in state.items():
        tensors = groups.get(name, [])
        if sum(tensor.numel for tensor in tensors) != parameter.numel():
            found = " and ".join(f"{t.name} {list(t.shape)}" for t in tensors[:2]) or "nothing"
            raise CheckpointError(
                f"{header.path}: for {name} {list(parameter.shape)} it holds {found}; tensors are "
                "missing, or of other sizes than transformers reads from the metadata; take "
                "another file of the model"
            )


def _shards(header: GgufHeader, saved: Mapping[str, torch.Tensor]) -> list[Shard]:
    outputs = []
    for name, value in saved.items():
        spec = TensorSpec(name, "BF16", tuple(value.shape), header.path, 0, 2 * value.numel())
        outputs.append(Output(TensorEdit(name, name), (spec,), spec.shape, "BF16"))
    return split(outputs, Saved(tuple(saved), {}, {}, frozenset()), _MAX_SHARD_BYTES)


def write(conversion: Conversion, target: Path, progress: Progress) -> None:
    """Fills the empty directory `target`.

    Raises:
        CheckpointError: a weight is not finite, or of another shape than the metadata say.
    """
    model = conversion.model
    with _by_transformers(conversion.header, "save its config and tokenizer"):
        model.config.save_pretrained(target)
        model.generation_config.save_pretrained(target)
        save_tokenizer(conversion.tokenizer, conversion.header, target)
    _write_index(conversion, target)
    with contextlib.ExitStack() as stack:
        places: dict[str, tuple[IO[bytes], int]] = {}
        for shard in conversion.shards:
            file = stack.enter_context((target / shard.name).open("wb"))
            file.write(shard.header)
            places |= {o.edit.target: (file, offset) for offset, o in shard.placed()}
        source = stack.enter_context(conversion.header.path.open("rb"))
        bar = stack.enter_context(progress.bar(conversion.nbytes, "converting", unit="B"))
        for name, value in _values(conversion, source):
            file, offset = places[name]
            file.seek(offset)
            file.write(value.contiguous().view(torch.int16).numpy())
            bar.update(value.nbytes)


def _write_index(conversion: Conversion, target: Path) -> None:
    if len(conversion.shards) == 1:
        return
    places = {o.edit.target: shard.name for shard in conversion.shards for o in shard.outputs}
    document = {"metadata": {"total_size": conversion.nbytes}, "weight_map": places}
    (target / INDEX_FILE).write_text(
        json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _values(conversion: Conversion, source: IO[bytes]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of the result by name, in bfloat16."""
    from transformers.core_model_loading import revert_weight_conversion

    header, state = conversion.header, conversion.model.state_dict()
    for target, tensors in conversion.groups.items():
        with _by_transformers(header, f"convert {tensors[0].name}"):
            value = _parameter(conversion, target, tensors, source)
        if value.shape != state[target].shape:
            raise CheckpointError(
                f"{header.path}: {tensors[0].name} makes a {target} of shape {list(value.shape)}, "
                f"and the metadata say {list(state[target].shape)}; download it again"
            )
        value = value.to(torch.bfloat16)
        if not all(torch.isfinite(end) for end in torch.aminmax(value)):
            raise CheckpointError(
                f"{header.path}: {tensors[0].name} has values that are NaN or infinite; download "
                "it again, or take another file of the model"
            )
        with _by_transformers(header, f"save {target}"):
            yield from revert_weight_conversion(conversion.model, {target: value}).items()


def _parameter(
    conversion: Conversion, target: str, tensors: list[GgufTensor], source: IO[bytes]
) -> torch.Tensor:
    """The parameter that `tensors` become, in float32."""
    made: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
    for tensor in tensors:
        result = conversion.processor.process(
            weights=_dequantised(tensor, source), name=tensor.name,
            tensor_key_mapping=conversion.names, parsed_parameters=made,
        )  # fmt: skip
        if result.name is not None:
            made["tensors"][target] = torch.from_numpy(np.ascontiguousarray(result.weights))
    return made["tensors"][target]


def _dequantised(tensor: GgufTensor, source: IO[bytes]) -> np.ndarray:
    """float32, of the tensor's shape; a part at a time, so that nothing is held twice."""
    from gguf import GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.kind)
    width = tensor.shape[-1]
    rows, row_bytes = tensor.numel // width, tensor.nbytes * width // tensor.numel
    values = np.empty((rows, width), dtype=np.float32)
    step = max(1, _CHUNK_VALUES // width)
    source.seek(tensor.offset)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        data = np.frombuffer(source.read(count * row_bytes), np.uint8).reshape(count, row_bytes)
        with np.errstate(all="ignore"):  # what is not finite is told later, with its name
            values[first : first + count] = dequantize(data, kind)
    return values.reshape(tensor.shape)
