"""Files of tokens: ``input_ids``, and what is known of them.

Another program's file of ``input_ids`` [samples, tokens] alone is taken as it is. Ours say in the
metadata what every sample begins with, and in ``counted`` [samples, tokens], where that is not all,
which tokens enter means and losses; so that a replay is exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from prunecomp.errors import UsageError

_INTEGERS = {
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Attributes as in `prunecomp.calibration.data.CalibrationSet`."""

    input_ids: torch.Tensor
    mask: torch.Tensor | None = None
    prefix: tuple[int, ...] = ()
    bos: str = "none"
    chat: str | None = None


def write(path: Path, stored: Stored) -> None:
    """Writes the file; tokens as int32."""
    from safetensors.torch import save

    tensors = {"input_ids": stored.input_ids.to(torch.int32).contiguous()}
    if stored.mask is not None:
        tensors["counted"] = stored.mask.contiguous()
    known = {"prefix": list(stored.prefix), "bos": stored.bos, "chat": stored.chat}
    path.write_bytes(save(tensors, metadata={"prunecomp": json.dumps(known)}))


def read(path: Path, samples: int | None, seq_len: int | None) -> Stored:
    """The first so many samples and tokens of a file; None for all.

    Raises:
        UsageError: it cannot be read, is malformed, or holds fewer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            tensors = {n: file.get_tensor(n) for n in ("input_ids", "counted") if n in names}
            metadata = file.metadata() or {}
    # the others are what torch says of dtypes and shapes that it does not have
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
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
    stored = _known(path, ids.long(), tensors.get("counted"), metadata.get("prunecomp"))
    mask = None if stored.mask is None else stored.mask[:rows, :columns]
    found = Stored(stored.input_ids[:rows, :columns], mask, stored.prefix, stored.bos, stored.chat)
    _check_something_counts(path, found)
    return found


def _known(
    path: Path, ids: torch.Tensor, mask: torch.Tensor | None, metadata: str | None
) -> Stored:
    if metadata is None and mask is None:
        return Stored(ids)
    try:
        known = json.loads(metadata or "{}")
        prefix, bos, chat = (
            tuple(known.get("prefix", ())),
            known.get("bos", "none"),
            known.get("chat"),
        )
        good = all(type(i) is int for i in prefix) and isinstance(bos, str)
        good = good and (chat is None or isinstance(chat, str)) and len(prefix) < ids.shape[1]
        good = good and bool((ids[:, : len(prefix)] == torch.tensor(prefix)).all())
        good = good and (mask is None or (mask.dtype == torch.bool and mask.shape == ids.shape))
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError, OverflowError):
        good = False
    if not good:
        raise UsageError(
            f"{path}: what it says of its own tokens (counted, prefix) does not fit them; save "
            "them again with --save-tokens"
        )
    return Stored(ids, mask, prefix, bos, chat)


def _check_something_counts(path: Path, stored: Stored) -> None:
    columns = stored.input_ids.shape[1]
    enough = len(stored.prefix) < columns
    if stored.mask is not None:
        enough = bool(stored.mask[:, 1:].any(dim=1).all())
    if not enough:
        raise UsageError(
            f"{path}: in {columns} tokens, a sample has none that counts; give a larger --seq-len"
        )
