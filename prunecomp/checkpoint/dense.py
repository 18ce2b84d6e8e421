"""A checkpoint as its logical weights: what calibration reads, whatever the files store.

Where nothing is quantised, these are the tensors of the files. Where something is, the parts of
each weight stand behind its one logical name, and its value is computed from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping

import torch

from prunecomp.checkpoint.tensors import CheckpointIndex
from prunecomp.errors import CheckpointError
from prunecomp.quantization.base import Held, Quantized

#: What comes of settings or shapes that no writer of the format makes.
_MISFIT = (ValueError, TypeError, KeyError, RuntimeError, IndexError, ArithmeticError)
_NOTHING: Mapping[str, Held] = {}


class DenseView(Mapping[str, torch.Tensor]):
    """Logical weights by name, in the order of the files; read and computed when asked for.

    Dequantised weights are float32; all others have the dtype of the files.
    """

    def __init__(
        self,
        index: CheckpointIndex,
        read: Callable[[str], torch.Tensor],
        quantized: Quantized | None,
    ) -> None:
        """`read` gives a tensor of the files."""
        self._index, self._read, self._quantized = index, read, quantized
        weights = {} if quantized is None else quantized.weights
        held = _NOTHING if quantized is None else quantized.held
        self._parts: dict[str, dict[str, str]] = {}
        for name in index:
            logical = held[name].weight if name in held else name
            if logical in weights or name not in held:
                self._parts.setdefault(logical, weights.get(logical, {}))
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.value(name, self._read)

    def value(self, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The weight as it comes out of what `read` gives for the tensors of the files.

        Raises:
            CheckpointError: the parts of a quantised weight do not fit each other.
        """
        parts = self._parts[name]
        if not parts:
            return read(name)
        assert self._quantized is not None
        try:
            return self._quantized.format.dequantise(
                {last: read(tensor) for last, tensor in parts.items()},
                self._quantized.settings,
                name.rpartition(".")[0],
            )
        except _MISFIT as error:
            raise self._misfit(name, error) from error

    def _misfit(self, name: str, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._index.files[0].parent}: the parts of {name} do not fit each other "
            f"({error}); restore the files"
        )

    def sources(self, name: str) -> list[str]:
        """The tensors of the files that make up a weight."""
        return list(self._parts[name].values()) or [name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, from headers (and a stored shape, where the format has one)."""
        if name not in self._shapes:
            self._shapes[name] = self._find_shape(name)
        return self._shapes[name]

    def _find_shape(self, name: str) -> tuple[int, ...]:
        parts = self._parts[name]
        if not parts:
            return self._index[name].shape
        assert self._quantized is not None
        try:
            found = self._quantized.format.shape({k: self._index[v] for k, v in parts.items()})
            if found is None:
                rows, columns = self._read(parts["weight_shape"]).tolist()
                found = int(rows), int(columns)
        except _MISFIT as error:
            raise self._misfit(name, error) from error
        return found

    def parameters(self, tensors: Container[str]) -> int:
        """Number of parameters of the weights whose tensors are among `tensors`."""
        return sum(math.prod(self.shape(n)) for n in self if self.sources(n)[0] in tensors)

    @property
    def dtypes(self) -> set[str]:
        """Dtypes, as the format of the files calls them, of what is not quantised."""
        return {self._index[name].dtype for name, parts in self._parts.items() if not parts}
