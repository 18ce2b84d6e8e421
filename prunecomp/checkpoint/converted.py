"""What a model directory was converted from, where that is not an ordinary checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD_FILE = "prunecomp-source.json"
#: What a bfloat16 holds exactly.
_EXACT = {"BF16"}


@dataclass(frozen=True)
class Converted:
    """The file that a directory was made of.

    Attributes:
        format: such as ``gguf``.
        file: its name.
        sha256: of its bytes.
        quantization: what its quantisation is called, such as ``Q4_K_M``.
        types: number of tensors of each type in it.
    """

    format: str
    file: str
    sha256: str
    quantization: str
    types: Mapping[str, int]

    @property
    def lossy(self) -> bool:
        """Whether the weights are other ones than before they went into the file.

        Norms and biases are F32 in nearly every file, and were bfloat16 before; what most values
        are stored as decides.
        """
        return self.quantization not in _EXACT

    @property
    def digests(self) -> dict[str, str]:
        """What a plan knows the model by: the file, wherever and as whatever it was converted."""
        return {f"model.{self.format}": self.sha256}

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return {**asdict(self), "lossy": self.lossy}

    def told(self) -> str:
        """One sentence for people."""
        start = f"`{self.file}` is a {self.format.upper()} file"
        if self.lossy and self.quantization in {"F16", "F32"}:
            return f"{start} of {self.quantization} weights, which were rounded to bfloat16"
        if self.lossy:
            return (
                f"{start} of {self.quantization} weights: they had been quantised, which is lossy, "
                "and were dequantised to bfloat16"
            )
        return f"{start} of {self.quantization} weights"


def write_record(directory: Path, source: Converted) -> None:
    """Says in `directory` what it was made of."""
    text = json.dumps(asdict(source), indent=2) + "\n"
    (directory / RECORD_FILE).write_text(text, encoding="utf-8")


def read_record(directory: Path) -> Converted | None:
    """What `directory` was made of; None where it does not say."""
    try:
        found = Converted(**json.loads((directory / RECORD_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found.sha256, str) and isinstance(found.types, dict) else None
