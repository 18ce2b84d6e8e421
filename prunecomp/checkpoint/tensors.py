"""All tensors of a model directory by name, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from prunecomp.checkpoint.index import INDEX_FILE, TensorSpec
from prunecomp.checkpoint.weight_files import read_specs, weight_files
from prunecomp.checkpoint.wrappers import plain_names
from prunecomp.errors import CheckpointError
from prunecomp.families.base import ModelFamily


class CheckpointIndex(Mapping[str, TensorSpec]):
    """All tensors of a model directory by name, in shard order and then file order.

    Attributes:
        files: the weight files.
        sharded: whether the directory has an index.
        wrapped: whether names in the files are others, as a wrapper of the model has left them.
    """

    def __init__(self, directory: Path, family: ModelFamily | None = None) -> None:
        """Reads headers.

        Args:
            family: takes wrappers out of the names, where it is given.

        Raises:
            CheckpointError: files are missing or damaged, or readers would load different weights.
        """
        found = weight_files(directory)
        specs = read_specs(directory, found)
        self.files, self.sharded = list(found.files), found.sharded
        missing = sorted(set(found.weight_map or ()) - set(specs))
        if missing:
            raise CheckpointError(
                f"{directory / INDEX_FILE}: places {missing[0]} in {found.weight_map[missing[0]]}, "
                "which does not hold it; complete the download"
            )
        names = {name: name for name in specs}
        if family is not None:
            names = plain_names(specs, family, where=str(directory))
        self.wrapped = any(name != stored for name, stored in names.items())
        self._specs = {name: specs[stored] for name, stored in names.items()}

    def __getitem__(self, name: str) -> TensorSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.values())

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(spec.numel for spec in self.values())

    @property
    def largest_file(self) -> int:
        """Bytes of tensors in the fullest weight file."""
        sizes = dict.fromkeys(self.files, 0)
        for spec in self.values():
            sizes[spec.file] += spec.nbytes
        return max(sizes.values())
