"""Which weight files of a directory count: those that transformers and vLLM both load.

Read from transformers 5.19.0 (``_get_resolved_checkpoint_files``, ``get_checkpoint_shard_files``)
and vLLM 0.32.0 (``_prepare_weights``, ``filter_duplicate_safetensors_files``,
``safetensors_weights_iterator``):

* transformers takes the file that ``transformers_weights`` of config.json names; else
  model.safetensors, whatever lies beside it; else the files that the index names, by name.
* vLLM takes every .safetensors of the directory itself; where there is an index, those of them that
  it names, and nothing if one of these is missing. Numbers in names count by their value.
* Both take all tensors of a file, wherever the index places them, and the last copy of a tensor.

So they may load different weights from one directory: a newer single file beside an older index,
a leftover shard, two copies of a tensor. What both load is taken, or what one loads where the other
refuses; where they differ, nobody can say which is meant. (vLLM prefers Mistral's own
consolidated.safetensors, whose tensors have other names and are not compared.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prunecomp.checkpoint.index import (
    INDEX_FILE,
    SINGLE_FILE,
    TensorSpec,
    read_header,
    read_json,
)
from prunecomp.errors import CheckpointError, brief
from prunecomp.json_files import read_settings

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightFiles:
    """What transformers loads.

    Attributes:
        files: in its order.
        weight_map: of the index, where there is one that counts: ``{tensor: file name}``.
    """

    files: Sequence[Path]
    weight_map: Mapping[str, str] | None

    @property
    def sharded(self) -> bool:
        return self.weight_map is not None


def weight_files(directory: Path) -> WeightFiles:
    """The files that transformers loads.

    Raises:
        CheckpointError: there are none, or not all.
    """
    explicit = _named_by_config(directory)
    if explicit is not None and not explicit.endswith(".index.json"):
        return WeightFiles([_file(directory, explicit, "config.json")], None)
    single, index = directory / SINGLE_FILE, directory / (explicit or INDEX_FILE)
    if explicit is None and single.is_file():
        if index.exists():
            _check_leftover_index(directory, index)
        return WeightFiles([single], None)
    if not index.exists():
        raise _no_weights(directory)
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    files = [_file(directory, name, index.name) for name in names]
    same = {file.name for file in files}
    if len(same) < len(files):
        raise CheckpointError(
            f"{index}: names files of one name in different folders; move all shards into "
            f"{directory} and correct it"
        )
    return WeightFiles(files, weight_map)


def _named_by_config(directory: Path) -> str | None:
    """A file that config.json asks transformers to load."""
    # who reads the config in earnest says what is wrong with it
    named = read_settings(directory / "config.json").get("transformers_weights")
    return named if isinstance(named, str) else None


def _weight_map(index: Path) -> Mapping[str, str]:
    document = read_json(index)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; restore the file")
    for file in weight_map.values():
        if not isinstance(file, str) or not _is_inside(file):
            raise CheckpointError(
                f"{index}: names {brief(file)}, which is not a file of this directory; restore it"
            )
    return weight_map


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    known = len(path.name.encode()) <= 255  # what file systems allow
    return bool(path.name) and known and not path.is_absolute() and ".." not in path.parts


def _file(directory: Path, name: str, where: str) -> Path:
    """A file that `where` names."""
    if not _is_inside(name):
        raise CheckpointError(
            f"{directory / where}: names {brief(name)}, which is not a file of this directory; "
            "restore it"
        )
    path = directory / name
    if not path.is_file():
        what = "a dead link" if path.is_symlink() else "missing"
        raise CheckpointError(
            f"{directory / where}: names {name}, which is {what}; complete the download"
        )
    return path


def _check_leftover_index(directory: Path, index: Path) -> None:
    """Refuses model.safetensors beside the index of a download that is not complete."""
    names = set(_weight_map(index).values())
    there = {name for name in names if (directory / name).is_file()}
    if there and there != names:
        raise CheckpointError(
            f"{directory}: holds {SINGLE_FILE} and {index.name}, whose {min(names - there)} is "
            f"missing; delete {index.name} and its shards, or delete {SINGLE_FILE} and complete "
            "the download"
        )


def _no_weights(directory: Path) -> CheckpointError:
    """What to say of a directory without weights that transformers would find."""

    def found(*patterns: str) -> list[str]:
        return sorted(p.relative_to(directory).as_posix()
                      for pattern in patterns for p in directory.glob(pattern))  # fmt: skip

    for name in (SINGLE_FILE, INDEX_FILE):
        if (directory / name).is_symlink():
            return CheckpointError(
                f"{directory / name}: is a dead link; complete the download of what it leads to"
            )
    if shards := found("model-*-of-*.safetensors"):
        return CheckpointError(
            f"{directory}: has shards ({shards[0]}) and no {INDEX_FILE}, which transformers needs "
            "to find them; complete the download"
        )
    if theirs := found("consolidated*.safetensors"):
        return CheckpointError(
            f"{directory}: holds only weights under Mistral's own names ({theirs[0]}); take the "
            "repository's model*.safetensors, or convert them with transformers"
        )
    if pickles := found("*.bin", "*.pt", "*.pth"):
        return CheckpointError(
            f"{directory}: holds only pickled weights ({pickles[0]}), which can run code when "
            "loaded; convert them in a place that you trust with AutoModelForCausalLM"
            ".from_pretrained(DIR).save_pretrained(NEW_DIR), which writes safetensors"
        )
    if nested := found(f"*/{SINGLE_FILE}", f"*/{INDEX_FILE}", "*/model-*-of-*.safetensors"):
        folder, _, file = nested[0].rpartition("/")
        return CheckpointError(
            f"{directory}: its weights lie in the folder {folder} ({file}), where transformers "
            f"does not look; move them up beside config.json, or name {directory / folder}"
        )
    return CheckpointError(
        f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE}; name a model directory"
    )


def read_specs(directory: Path, found: WeightFiles) -> dict[str, TensorSpec]:
    """All tensors that are loaded, in the order of the files.

    Raises:
        CheckpointError: a file is damaged; the readers would load different weights.
    """
    headers = {file: read_header(file) for file in found.files}
    specs = _last(headers.values())
    for file, header in headers.items():
        for spec in header:
            if not same_bytes(spec, specs[spec.name]):
                raise CheckpointError(
                    f"{directory}: {_short(spec.name)} stands in {file.name} and in "
                    f"{specs[spec.name].file.name} with different contents; restore the shards, "
                    "or delete the one that is out of date"
                )
    _compare_with_vllm(directory, found, headers, specs)
    return specs


def _last(headers: Iterable[Iterable[TensorSpec]]) -> dict[str, TensorSpec]:
    """Of several copies of a tensor the last, in the place of the first."""
    return {spec.name: spec for header in headers for spec in header}


def _vllm_files(directory: Path) -> list[Path] | None:
    """What vLLM loads, in its order; None where it refuses."""

    def order(path: Path) -> list[str | int]:
        parts = re.split(r"(\d+)", path.name)  # every second one is a number
        return [int(part) if place % 2 else part for place, part in enumerate(parts)]

    files = [p for p in directory.glob("*.safetensors") if p.is_file()]
    index = directory / INDEX_FILE
    if index.exists():
        named = {directory / name for name in _weight_map(index).values()}
        if not named <= set(files):
            return None
        files = [file for file in files if file in named]
    return sorted(files, key=order)


def _compare_with_vllm(
    directory: Path,
    found: WeightFiles,
    headers: Mapping[Path, list[TensorSpec]],
    specs: Mapping[str, TensorSpec],
) -> None:
    """Refuses where vLLM would load other values than transformers."""
    files = _vllm_files(directory)
    if files is None or set(files) == set(found.files):
        return
    others = []
    for file in files:
        try:
            others.append(headers[file] if file in headers else read_header(file))
        except CheckpointError:
            continue  # a file that is no model's; vLLM says so
    theirs = _last(others)
    indexed = (directory / INDEX_FILE).exists()
    for name, spec in specs.items():
        other = theirs.get(name)
        if (other is None and not indexed) or (other is not None and same_bytes(spec, other)):
            continue
        where = "" if other is None else other.file.name
        if indexed:
            where = f"{INDEX_FILE} ({where})" if where else INDEX_FILE
        raise CheckpointError(
            f"{directory}: transformers would load {spec.file.name}, vLLM {where}, and "
            f"{_short(name)} differs; delete what is out of date"
        )


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."


def same_bytes(one: TensorSpec, other: TensorSpec) -> bool:
    """Whether two tensors of files are the same, to the bit; reads until they differ."""
    if one is other:
        return True
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for done in range(0, one.nbytes, _CHUNK_BYTES):
            nbytes = min(_CHUNK_BYTES, one.nbytes - done)
            if first.read(nbytes) != second.read(nbytes):
                return False
    return True
