"""Calibration and evaluation tokens: where they come from, and proof of which they were.

A source is named by one string:

* a built-in name: ``python-stdlib``, ``prose`` (offline), ``wikitext-2``, ``c4`` (from the hub);
* a ``.txt`` file; a ``.jsonl`` file with one object per line (`TextSource.field` names the text);
* a ``.safetensors`` file that holds ``input_ids`` [samples, tokens], to repeat a run exactly;
* the id of a data set on the hub, with `config`, `split` and `field`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunecomp.calibration import prose, python_stdlib
from prunecomp.errors import MissingDependencyError, UsageError
from prunecomp.registry import did_you_mean

DEFAULT_SAMPLES = 128
DEFAULT_SEQ_LEN = 2048

#: Built-in names that stand for a data set on the hub: what to calibrate on, and what to evaluate
#: on. WikiText-2's training split is what the pruning literature calibrates on; its rows are
#: lines, joined by blank lines.
HUB_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "wikitext-2": {
        split: {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "split": part}
        for split, part in (("train", "train"), ("held-out", "test"))
    },
    "c4": {
        "train": {
            "path": "allenai/c4", "split": "train",
            "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"},
        },
        "held-out": {
            "path": "allenai/c4", "split": "validation",
            "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
        },
    },
}  # fmt: skip
#: Built-in names of whole documents that are on this machine.
OFFLINE = {"python-stdlib": python_stdlib, "prose": prose}
BUILT_IN = (*OFFLINE, *HUB_PRESETS)
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """What the user named: `name` as above; the rest refines files and hub data sets."""

    name: str
    field: str = "text"
    config: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class CalibrationSet:
    """Tokens, and everything that decided which.

    Attributes:
        input_ids: [samples, tokens] int64.
        source: what was named.
        seed: of the choice of samples.
    """

    input_ids: torch.Tensor
    source: TextSource
    seed: int

    @property
    def sha256(self) -> str:
        """Digest of shape and tokens (little-endian int64)."""
        digest = hashlib.sha256(str(tuple(self.input_ids.shape)).encode())
        digest.update(self.input_ids.contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def save_tokens(tokens: CalibrationSet, path: Path) -> None:
    """Writes ``input_ids`` as int32 for use as a ``.safetensors`` source."""
    from safetensors.torch import save

    path.write_bytes(save({"input_ids": tokens.input_ids.to(torch.int32).contiguous()}))


def load_tokens(
    source: TextSource,
    *,
    tokenizer_dir: Path,
    vocab_size: int,
    max_seq_len: int | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    held_out: bool = False,
) -> CalibrationSet:
    """Draws `samples` windows of `seq_len` tokens; windows do not overlap.

    Text is tokenised without special tokens and cut into windows, of which a seeded choice is
    taken. A source with fewer windows gives those that it has.

    Args:
        max_seq_len: the model's context; a longer default is cut to it, a longer request is
            refused.
        held_out: take the evaluation split of a built-in source that has one.

    Raises:
        UsageError: the source is missing, malformed, empty, or shorter than one sample.
        MissingDependencyError: a hub data set, or ``prose``, without the package for it.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: give a number from 0 to 2^63 - 1")
    if source.name.endswith(".safetensors"):
        input_ids = _token_file(Path(source.name), samples, seq_len)
        _check_ids(input_ids, source.name, vocab_size, max_seq_len)
        return CalibrationSet(input_ids, source, seed)
    samples = DEFAULT_SAMPLES if samples is None else samples
    if seq_len is None:
        seq_len = min(DEFAULT_SEQ_LEN, max_seq_len or DEFAULT_SEQ_LEN)
    if samples < 1 or seq_len < 2:
        raise UsageError(
            f"{samples} samples of {seq_len} tokens: at least one sample of two tokens is needed; "
            "give larger --samples or --seq-len"
        )
    _check_context(seq_len, source.name, max_seq_len)
    generator = torch.Generator().manual_seed(seed)
    # A few times what is needed leaves the choice of windows something to choose from, and
    # spares tokenising the rest of a large corpus.
    enough = 4 * samples * seq_len
    if source.name in OFFLINE:
        found = OFFLINE[source.name].documents("held-out" if held_out else "train")
        stream = _document_stream(tokenizer_dir, [t for _, t in found], generator, enough)
    else:
        text = "\n\n".join(_texts(source, enough * 8, held_out=held_out))
        if not text.strip():
            raise UsageError(f"{source.name}: the calibration text is empty; name another source")
        stream = _ids(_tokenizer(tokenizer_dir), text)
    if not stream:  # what transformers makes of a directory without tokenizer files
        raise UsageError(
            f"{tokenizer_dir}: its tokenizer makes no tokens of the text; restore its files, or "
            "give the tokens as a .safetensors file"
        )
    count = len(stream) // seq_len
    if count == 0:
        raise UsageError(
            f"{source.name}: the text has {len(stream)} tokens, which is less than one sample of "
            f"{seq_len}; give more text or a smaller --seq-len"
        )
    windows = torch.tensor(stream[: count * seq_len]).view(count, seq_len)
    chosen = torch.randperm(count, generator=generator)[:samples]
    input_ids = windows[chosen]
    _check_ids(input_ids, source.name, vocab_size, max_seq_len)
    return CalibrationSet(input_ids, source, seed)


def _check_ids(input_ids: torch.Tensor, name: str, vocab_size: int, context: int | None) -> None:
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise UsageError(
            f"{name}: token {low if low < 0 else high} is outside the model's vocabulary of "
            f"{vocab_size}; the tokens were made for another model"
        )
    _check_context(input_ids.shape[1], name, context)


def _check_context(seq_len: int, name: str, context: int | None) -> None:
    if context is not None and seq_len > context:
        raise UsageError(
            f"{name}: samples of {seq_len} tokens exceed the model's context of {context}; "
            "use a smaller --seq-len"
        )


def _token_file(path: Path, samples: int | None, seq_len: int | None) -> torch.Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot read the tokens ({error}); check the file") from error
    ids = tensors.get("input_ids")
    if ids is None or ids.ndim != 2 or ids.dtype not in _INTEGERS:
        raise UsageError(f"{path}: must hold an integer tensor input_ids of [samples, tokens]")
    rows = len(ids) if samples is None else samples
    columns = ids.shape[1] if seq_len is None else seq_len
    if not (1 <= rows <= len(ids) and 2 <= columns <= ids.shape[1]):
        raise UsageError(
            f"{path}: holds {len(ids)} samples of {ids.shape[1]} tokens, {rows} of {columns} "
            "were asked for; give smaller --samples or --seq-len"
        )
    return ids[:rows, :columns].long()


def _tokenizer(directory: Path):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # a malformed file can raise anything in there
        raise UsageError(
            f"{directory}: cannot load its tokenizer ({_reason(error)}); restore its files, or "
            "give the tokens as a .safetensors file"
        ) from error


def _ids(tokenizer, text: str | list[str]):
    """Token ids without special tokens, and without the warning that a corpus is a long text."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _reason(error: Exception) -> str:
    """What another package has to say about it, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _document_stream(
    directory: Path, texts: list[str], generator: torch.Generator, enough: int
) -> list[int]:
    """Whole documents in random order, each after an end-of-text token where there is one."""
    tokenizer = _tokenizer(directory)
    order = torch.randperm(len(texts), generator=generator).tolist()
    start = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for first in range(0, len(order), 16):
        part = [texts[i] for i in order[first : first + 16]]
        for ids in _ids(tokenizer, part):
            stream += start + ids
        if len(stream) >= enough:
            break
    return stream


def _texts(source: TextSource, enough: int, *, held_out: bool) -> Iterator[str]:
    """The texts of a file or data set, until about `enough` characters have come."""
    path = Path(source.name)
    if path.suffix in {".txt", ".jsonl"}:
        if not path.is_file():
            kind = "is not a file" if path.exists() else "no such file"
            raise UsageError(f"{path}: {kind}; name a text file to calibrate on")
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows tools write a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path}: cannot read it as UTF-8 text ({_reason(error)}); convert or restore it"
            ) from error
        yield from [text] if path.suffix == ".txt" else _jsonl(path, text, source.field)
        return
    if path.is_file():
        raise UsageError(f"{path}: a calibration file is a .txt, a .jsonl or a .safetensors")
    local = bool(source.name) and path.is_dir()  # which the package datasets reads, too
    if source.name not in BUILT_IN and not (local or _HUB_ID.fullmatch(source.name)):
        raise UsageError(
            f"unknown calibration source {source.name!r}{did_you_mean(source.name, BUILT_IN)} "
            f"(use {', '.join(BUILT_IN)}, a .txt, .jsonl or .safetensors file, or a hub data set "
            "as OWNER/NAME)"
        )
    seen = 0
    for text in _hub(source, "held-out" if held_out else "train"):
        yield text
        seen += len(text)
        if seen >= enough:
            return


def _jsonl(path: Path, text: str, field: str) -> Iterator[str]:
    # Not splitlines(): a JSON string may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}, line {number}: is not JSON ({_reason(error)}); correct the line"
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise UsageError(
                f"{path}, line {number}: has no text under {field!r}; name the field with "
                "--calibration-field"
            )
        if re.search("[\ud800-\udfff]", record[field]):
            raise UsageError(
                f"{path}, line {number}: holds half of a surrogate pair, which is not text; "
                "correct the line"
            )
        yield record[field]


def _hub(source: TextSource, split: str) -> Iterator[str]:
    for row in _rows(source, split):
        if not isinstance(row.get(source.field), str):
            raise UsageError(
                f"{source.name}: rows have the fields {', '.join(row)}, and no text under "
                f"{source.field!r}; name one with --calibration-field"
            )
        yield row[source.field]


def _rows(source: TextSource, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"{source.name}: reading a hub data set needs the package datasets; "
            "install prunecomp[data]"
        ) from error
    request = {"path": source.name, "split": "train"}
    if source.name in HUB_PRESETS:
        request = dict(HUB_PRESETS[source.name][split])
    if source.config:
        request["name"] = source.config
    if source.split:
        request["split"] = source.split
    try:
        yield from load_dataset(**request, streaming=True)
    except Exception as error:  # four packages and the network are behind this
        raise UsageError(
            f"{source.name}: cannot load the data set ({_reason(error)}); check its name and the "
            "network, or use a local file"
        ) from error
