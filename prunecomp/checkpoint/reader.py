"""A model directory as a lazy mapping from tensor names to tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from prunecomp.checkpoint import digests
from prunecomp.checkpoint.carried import CONFIG_FILE
from prunecomp.checkpoint.converted import read_record
from prunecomp.checkpoint.dense import DenseView
from prunecomp.checkpoint.directory import check_directory
from prunecomp.checkpoint.finite import FiniteScan
from prunecomp.checkpoint.index import TensorSpec, read_config
from prunecomp.checkpoint.tensors import CheckpointIndex
from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.families import family_for
from prunecomp.families.base import is_stored_buffer
from prunecomp.quantization import KEYS as QUANTIZATION_KEYS
from prunecomp.quantization import quantization_of
from prunecomp.quantization.base import Held, Quantized

_CHUNK_BYTES = 1 << 20


class TensorFiles:
    """Reads tensors; a file stays mapped as long as a tensor that was read from it lives."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs, self._open = specs, {}

    def __call__(self, key: str) -> torch.Tensor:
        spec = self._specs[key]
        if spec.file not in self._open:
            self._open[spec.file] = safe_open(spec.file, framework="pt")
        return self._open[spec.file].get_tensor(spec.name)


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of the files, read one at a time; nothing but headers is held in memory.

    Attributes:
        path: the directory.
        home: what the user named: the directory, or the file that it was converted from.
        converted: what it was converted from; None for a directory that is its own source.
        config: config.json as it stands.
        family: the architecture's description, with the names that the files use.
        layers_path: of the list of layers in transformers' module tree.
        index: specs of all tensors, without their data.
        quantized: how the weights are quantised; None where they are not.
        dense: the same model by logical weights, dequantised.
    """

    def __init__(self, path: Path, *, home: Path | None = None) -> None:
        """Opens the directory and checks it against its config, without reading weights.

        Args:
            home: what the user named, if not the directory itself.

        Raises:
            CheckpointError: missing, damaged or inconsistent.
            UnsupportedModelError: not an architecture that can be compressed.
        """
        check_directory(path)
        self.path, self.home = path, home or path
        self.converted = read_record(path)
        self.config = read_config(path / CONFIG_FILE)
        family = family_for(self.config, where=str(path))
        self.layers_path = family.layers
        self.index = CheckpointIndex(path, family)
        self.family = family.in_files(self.index)
        self._check_leftover_settings()
        quantization = quantization_of(self.config, where=str(path))
        self._sha256: dict[str, str] = {}
        self._stamps: dict[str, str] = {}
        self._check_depth()
        self.quantized: Quantized | None = None
        if quantization is not None:
            self.quantized = Quantized(*quantization, self.index, where=str(path))
            self._check_names(self.quantized)
        else:
            self._check_unquantized()
        self.dense = DenseView(self.index, self.__getitem__, self.quantized)

    def _check_depth(self) -> None:
        per_layer: dict[int, int] = {}
        for name in self.index:
            located = self.family.layer_of(name)
            if located is not None:
                per_layer[located[0]] = per_layer.get(located[0], 0) + 1
        expected = set(range(self.num_hidden_layers))
        extra = self.family.extra_layers(self.config)
        per_layer = {i: n for i, n in per_layer.items() if i not in extra}
        if set(per_layer) != expected:
            odd = sorted(expected.symmetric_difference(per_layer))
            raise CheckpointError(
                f"{self.path}: {CONFIG_FILE} says {self.num_hidden_layers} layers, the weights "
                f"disagree about layer {odd[0]}; restore the file that is wrong"
            )

    def _check_leftover_settings(self) -> None:
        """Refuses settings of a quantisation of which the weights show no trace.

        Some readers would quantise such weights on loading; nobody can say whether that is meant.
        """
        key = next((key for key in QUANTIZATION_KEYS if self.config.get(key)), None)
        if key is None or not self._is_plain():
            return
        settings = self.config[key]
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise CheckpointError(
            f"{self.path / CONFIG_FILE}: {key} speaks of {str(method)[:40]!r}, but no weight is "
            f"quantised; delete {key} if these are the weights that you want, else restore them"
        )

    def _is_plain(self) -> bool:
        """Whether all tensors are floating values in a common format, and some of them weights."""
        floats, buffers = {"F64", "F32", "F16", "BF16"}, {"I64", "BOOL"}
        return all(spec.dtype in floats | buffers for spec in self.index.values()) and any(
            name.endswith(".weight") and self.family.layer_of(name) for name in self.index
        )

    def _check_unquantized(self) -> None:
        """Refuses codes without the settings that say what they stand for."""
        numbers = {"BOOL", "C64", *(f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64))}
        for name, spec in self.index.items():
            located = self.family.layer_of(name)
            scaled = located is not None and self.family.power(located[1]) != 0
            if spec.dtype in numbers and (scaled or name.endswith(".weight")):
                raise CheckpointError(
                    f"{self.path}: {name} is {spec.dtype}, where a weight has to be a float, and "
                    f"{CONFIG_FILE} has no quantization_config; restore the file that is wrong"
                )
            if not (spec.dtype.startswith(("F4", "F6_", "F8_")) or name.endswith(".qweight")):
                continue
            if (self.path / "hf_quant_config.json").exists():
                raise UnsupportedModelError(
                    f"{self.path}: is quantised by ModelOpt (hf_quant_config.json; {name} is "
                    f"{spec.dtype}), a format that is not supported; compress the unquantised "
                    "model, then quantise the result"
                )
            raise CheckpointError(
                f"{self.path}: {name} is {spec.dtype}, but {CONFIG_FILE} has no "
                "quantization_config; restore it"
            )

    def _check_names(self, quantized: Quantized) -> None:
        """Refuses settings that could not be renumbered, before anything long is done."""
        unread = quantized.unread(self.layers_path)
        try:
            self.quantization_settings(tuple(range(1, self.num_hidden_layers)))
        except UnsupportedModelError as error:
            unread = str(error)
        if unread:
            raise UnsupportedModelError(
                f"{self.path / CONFIG_FILE}: {quantized.key} names modules in a way that cannot be "
                f"kept when layers are renumbered ({unread}); compress the unquantised model, then "
                "quantise the result"
            )

    @property
    def held(self) -> Mapping[str, Held]:
        """What those tensors of the files are that belong to a quantised weight."""
        return {} if self.quantized is None else self.quantized.held

    def quantization_settings(self, kept: tuple[int, ...]) -> dict[str, Any]:
        """What config.json says of quantisation when only the layers `kept` are left.

        Returns ``{}`` where the weights are not quantised, else one key with its value.

        Raises:
            UnsupportedModelError: it names modules in a way that cannot be renumbered.
        """
        if self.quantized is None:
            return {}
        return {
            self.quantized.key: self.quantized.renumbered(
                self.family, self.index, kept, layers=self.layers_path
            )
        }

    @property
    def num_hidden_layers(self) -> int:
        return self.family.depth(self.config)

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's weight."""
        return self.family.is_tied(self.config)

    def __getitem__(self, name: str) -> torch.Tensor:
        return TensorFiles(self.index)(name)

    def __contains__(self, name: object) -> bool:
        return name in self.index  # a Mapping's own way would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def scan(self, file: Path) -> FiniteScan:
        """What looks for values that are no numbers in one of the weight files.

        Not in what is no part of the model: buffers that it computes, and layers that only
        predict ahead.
        """
        extra = self.family.extra_layers(self.config)
        return FiniteScan([
            spec for name, spec in self.index.items()
            if spec.file == file and not is_stored_buffer(name)
            and (self.family.layer_of(name) or (-1,))[0] not in extra
        ])  # fmt: skip

    def sha256(self) -> dict[str, str]:
        """Digest of config.json and of each weight file, as ``{file name: hex}``; read once.

        Of a converted model it is that of the file that it was converted from.

        Raises:
            CheckpointError: a weight is NaN or infinite. What is remembered was looked at, too.
        """
        if self.converted is not None:
            return self.converted.digests
        known = self.known_sha256()
        unread = [path for path in self._hashed() if known[path.name] is None]
        # hashlib lets other threads run, so files are hashed side by side.
        with ThreadPoolExecutor(max_workers=4) as pool:
            for path, digest in zip(unread, pool.map(self._read_all, unread), strict=True):
                self.learn_sha256(path.name, digest)
        return {path.name: self._sha256[path.name] for path in self._hashed()}

    def _hashed(self) -> list[Path]:
        return [self.path / CONFIG_FILE, *self.index.files]

    def known_sha256(self) -> dict[str, str | None]:
        """The same, of which the weight files' are None that nobody has computed yet."""
        if self.converted is not None:
            return dict(self.converted.digests)
        if not self._stamps:
            self._sha256[CONFIG_FILE] = digests.read_sha256(self.path / CONFIG_FILE)
            for path in self._hashed():
                self._stamps[path.name] = digests.stamp(path)
                if (known := digests.recall(path)) is not None:
                    self._sha256[path.name] = known
        return {path.name: self._sha256.get(path.name) for path in self._hashed()}

    def _read_all(self, file: Path) -> str:
        scan, digest = self.scan(file), hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with file.open("rb", buffering=0) as source:
            while count := source.readinto(buffer):
                scan.feed(buffer[:count])
                digest.update(buffer[:count])
        return digest.hexdigest()

    def learn_sha256(self, file: str, digest: str) -> None:
        """Takes the digest of a file from whoever has read all of it, after `known_sha256`.

        All of its values were found to be finite on the way.
        """
        self._sha256[file] = digest
        path = next(path for path in self._hashed() if path.name == file)
        digests.remember(path, digest, read_as=self._stamps[file])
