"""An exported graph against the model in torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters._onnx_graph import first_line
from prunecomp.errors import VerificationError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

#: Largest difference of logits that passes, as a share of the largest logit: a few roundings of
#: the format. Eight-bit weights move logits far more; there it only catches what is broken.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 3e-1}
#: Lengths of the check's calls: a prompt, single tokens from the cache, several from the cache.
STEPS = (9, 1, 1, 2)
#: How many tokens of padding are in front of each sequence of the check.
PADDING = (4, 0, 2)


@dataclass(frozen=True)
class Difference:
    """Largest |logit of ONNX Runtime - logit of torch|, over all tokens that are not padding."""

    prefill: float
    decode: float
    largest_logit: float

    @property
    def relative(self) -> float:
        """As a share of the largest logit; of logits that are all zero, zero or infinite."""
        largest = max(self.prefill, self.decode)
        if not largest:
            return 0.0
        return largest / self.largest_logit if self.largest_logit else math.inf


def open_graph(path: Path, *, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU, silent below errors.

    Raises:
        VerificationError: it does not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise VerificationError(f"ONNX Runtime does not load it: {first_line(error)}") from error


class Decoder:
    """A session and its cache: ``step`` gives the logits of further tokens."""

    def __init__(self, session: Any, batch: int) -> None:
        import numpy as np

        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self._inputs = {value.name for value in session.get_inputs()}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._past = {
            value.name.replace("present", "past_key_values"): np.zeros(
                (batch, value.shape[1], 0, value.shape[3]), types[value.type]
            )
            for value in session.get_outputs()
            if value.name != "logits"
        }

    def step(self, **inputs: np.ndarray) -> np.ndarray:
        """Logits [batch, new, vocabulary] of ``input_ids``; what the graph does not take is left.

        Raises:
            VerificationError: it does not run.
        """
        feed = {name: value for name, value in inputs.items() if name in self._inputs}
        try:
            values = self._session.run(self._outputs, feed | self._past)
        except Exception as error:  # its errors have no common base
            raise VerificationError(f"ONNX Runtime does not run it: {first_line(error)}") from error
        made = dict(zip(self._outputs, values, strict=True))
        logits = made.pop("logits")
        self._past = {n.replace("present", "past_key_values"): v for n, v in made.items()}
        return logits


def _calls(
    ids: torch.Tensor, mask: torch.Tensor, start: int, steps: Sequence[int]
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """The inputs of each call, at positions from `start`, and which of its tokens count."""
    positions, end = (mask.cumsum(1) - 1).clamp(min=0) + start, 0
    for step in steps:
        begin, end = end, end + step
        yield (
            {
                "input_ids": ids[:, begin:end],
                "attention_mask": mask[:, :end],
                "position_ids": positions[:, begin:end],
            },
            mask[:, begin:end].bool(),
        )


def _torch_logits(reference: nn.Module, **inputs: Any) -> torch.Tensor:
    """Logits [batch, new, vocabulary] of the model itself.

    Raises:
        VerificationError: transformers' code does not run it, as that of longrope by type of layer.
    """
    import torch

    try:
        with torch.no_grad():
            return reference(**inputs).logits
    except Exception as error:  # the model's own code can raise anything
        raise VerificationError(
            f"transformers itself does not run the model ({first_line(error)}); nothing is kept"
        ) from error


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """The largest difference of logits, and the largest logit, where torch gives numbers.

    Raises:
        VerificationError: torch's are no numbers, or ONNX Runtime's are none where torch's are.
    """
    if wanted.isnan().any():
        raise VerificationError(
            "torch itself gives logits that are NaN, in float32; the weights are damaged"
        )
    numbers = wanted.isfinite()
    if not found[numbers].isfinite().all():
        raise VerificationError(
            "ONNX Runtime gives logits that are not finite; the model's activations are too "
            "large for this precision, take --precision bf16 or fp32"
        )
    if not numbers.any():
        return 0.0, 0.0
    found, wanted = found[numbers], wanted[numbers]
    return float((found - wanted).abs().max()), float(wanted.abs().max())


def _compare_from(start: int, decoder: Decoder, reference: nn.Module) -> Difference:
    """A left-padded batch whose texts begin at the position `start`."""
    import torch
    from transformers import DynamicCache

    from exporters._onnx_graph import takes_positions

    generator = torch.Generator().manual_seed(0)
    shape = (len(PADDING), sum(STEPS))
    ids = torch.randint(1, reference.config.vocab_size, shape, generator=generator)
    mask = (torch.arange(shape[1]) >= torch.tensor(PADDING)[:, None]).long()
    cache, differences, largest = DynamicCache(), [], 0.0
    for inputs, real in _calls(ids, mask, start, STEPS):
        found = torch.from_numpy(decoder.step(**{k: v.numpy() for k, v in inputs.items()}))
        if not takes_positions(reference):
            del inputs["position_ids"]
        wanted = _torch_logits(reference, past_key_values=cache, use_cache=True, **inputs)
        difference, logit = _difference(found[real].float(), wanted[real].float())
        differences.append(difference)
        largest = max(largest, logit)
    return Difference(differences[0], max(differences[1:]), largest)


def compare(path: Path, reference: nn.Module) -> Difference:
    """ONNX Runtime against torch: a left-padded batch, in one go and then from the cache.

    Where the rotary frequencies change above a length, once more across that length.

    Raises:
        VerificationError: the graph does not run, or gives logits that are no numbers where torch
            gives numbers.
    """
    from exporters._onnx_rope import switches

    session = open_graph(path)
    starts = [0, *(max(0, length - STEPS[0]) for length in switches(reference))]
    return max(
        (_compare_from(start, Decoder(session, len(PADDING)), reference) for start in starts),
        key=lambda difference: difference.relative,
    )


def check(path: Path, reference: nn.Module, precision: str) -> Difference:
    """The format's own checker, then the comparison with `reference`, which is in fp32.

    Raises:
        VerificationError: malformed, or too far from torch.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and the shape inference raise their own
        raise VerificationError(
            f"the ONNX checker refuses the graph: {first_line(error)}"
        ) from error
    difference = compare(path, reference)
    if not difference.relative <= TOLERANCE[precision]:
        raise VerificationError(
            f"ONNX Runtime and torch differ by {difference.relative:.2e} of the largest logit, "
            f"more than the {TOLERANCE[precision]:.0e} that {precision} may; nothing is kept"
        )
    return difference
