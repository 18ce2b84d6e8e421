"""What a quantisation format declares, and how its weights lie in the files.

A format speaks of the tensors of one linear module by their last name: ``X.weight_scale`` is the
``weight_scale`` of the module X, whose *logical* weight is ``X.weight``. Families know logical
names only; formats know nothing of families.

Letters: a logical weight is [out, in].
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from prunecomp.errors import CheckpointError, UnsupportedModelError
from prunecomp.quantization._names import (
    NameList,
    Renumbering,
    renumber,
    unread_layer_names,
)

if TYPE_CHECKING:
    from prunecomp.families.base import ModelFamily


class Role(enum.Enum):
    """How a tensor goes with the factor of the weight that it belongs to."""

    SCALE = "scale"  # takes it
    CODES = "codes"  # is never changed: codes, zero points, orders, shapes
    INPUT = "input"  # goes with the module's input, which a fold scales for un-normed readers only
    OUTPUT = "output"  # goes with the module's output, which a fold scales for writers only


@dataclass(frozen=True)
class Held:
    """What a tensor of the files is: its role, and the logical weight that it belongs to."""

    weight: str
    role: Role

    def factor(self, scale: float, *, reads: bool) -> float:
        """What this tensor is multiplied by where the logical weight is multiplied by `scale`.

        Args:
            reads: the weight is scaled because its input is; its output stays as it was.
        """
        if self.role is Role.SCALE or (self.role is Role.OUTPUT and not reads):
            return scale
        return 1.0 / scale if self.role is Role.INPUT and reads else 1.0


class Spec(Protocol):
    """A tensor of the files, without its data."""

    dtype: str
    shape: tuple[int, ...]


class Format:
    """One ``quant_method``; see the modules of this package.

    Attributes:
        method: its name in config.json.
        scales: last names of the tensors that take a weight's factor; a module that has one is
            quantised.
        required: what else such a module must have: all of one of these.
        codes: last names of what is copied as it is.
        inputs: last names of scales of a module's input.
        outputs: last names of scales of its output.
        kept: last names of other scales of activations, such as keys and values, which no fold
            changes.
        names: the settings that name modules.
    """

    method: str
    scales: tuple[str, ...]
    required: tuple[tuple[str, ...], ...]
    codes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("k_scale", "v_scale", "q_scale", "prob_scale")
    names: tuple[NameList, ...] = ()

    def reason_against(self, settings: Mapping[str, Any]) -> str | None:
        """Why checkpoints with these settings cannot be folded into; None where they can."""
        raise NotImplementedError

    def shape(self, parts: Mapping[str, Spec]) -> tuple[int, ...] | None:
        """Shape of the logical weight, from headers; None where they do not tell."""
        raise NotImplementedError

    def dequantise(
        self, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any], module: str
    ) -> torch.Tensor:
        """The logical weight [out, in] float32, computed in fp32.

        Args:
            parts: the module's tensors by last name.

        Raises:
            ValueError: the parts do not fit each other.
        """
        raise NotImplementedError

    def tidied(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` after names of modules were taken out of them."""
        return settings

    def role(self, last: str) -> Role | None:
        """The role of a tensor by its last name."""
        for role, names in (
            (Role.SCALE, self.scales), (Role.CODES, self.codes), (Role.INPUT, self.inputs),
            (Role.OUTPUT, self.outputs), (Role.CODES, self.kept),
        ):  # fmt: skip
            if last in names:
                return role
        return None


class Quantized:
    """How the weights of one checkpoint are quantised.

    Attributes:
        key: of the settings in config.json.
        settings: as they stand there.
        weights: per logical name, the tensors of the files by last name.
        held: per tensor of the files that is no weight by itself, what it is.
    """

    def __init__(
        self, key: str, found: Format, settings: Mapping[str, Any], specs: Mapping[str, Spec],
        *, where: str,
    ) -> None:  # fmt: skip
        """Reads names and headers only.

        Raises:
            CheckpointError: parts are missing, or not known to the format.
            UnsupportedModelError: scales of a kind that cannot take a factor.
        """
        self.key, self.format, self.settings = key, found, settings
        self.weights: dict[str, dict[str, str]] = {}
        self.held: dict[str, Held] = {}
        modules: dict[str, dict[str, str]] = {}
        for name in specs:
            module, _, last = name.rpartition(".")
            modules.setdefault(module, {})[last] = name
        for module, tensors in modules.items():
            scales = [last for last in tensors if last in found.scales]
            if scales:
                self._note_weight(found, module, tensors, scales[0], where=where)
            elif "weight" in tensors:
                _check_dense(specs[tensors["weight"]], tensors["weight"], where=where)
            activations = (*found.inputs, *found.outputs, *found.kept)
            for last in set(tensors) & set(activations):
                role = found.role(last)
                assert role is not None
                self.held[tensors[last]] = Held(f"{module}.weight", role)
        self._check_codes(specs, where=where)
        if not self.weights:
            raise CheckpointError(
                f"{where}: config.json speaks of {found.method}, but no weight is quantised; "
                "restore the file that is wrong"
            )
        for name, held in self.held.items():
            if held.role is not Role.CODES and specs[name].dtype not in {"F16", "BF16", "F32"}:
                raise UnsupportedModelError(
                    f"{where}: {name} is {specs[name].dtype}, a scale that cannot take a factor; "
                    "compress the unquantised model, then quantise the result"
                )

    def _note_weight(
        self, found: Format, module: str, tensors: Mapping[str, str], scale: str, *, where: str
    ) -> None:
        logical = f"{module}.weight"
        parts: dict[str, str] = {}
        for last, name in tensors.items():
            role = found.role(last)
            if role in (Role.SCALE, Role.CODES):
                parts[last] = name
                self.held[name] = Held(logical, role)
            elif role is None and last != "bias":
                raise CheckpointError(
                    f"{where}: {name} is not a part of {found.method} that is known; "
                    "compress the unquantised model, then quantise the result"
                )
        if not any(set(option) <= parts.keys() for option in found.required):
            needed = " or ".join(" and ".join(option) for option in found.required)
            raise CheckpointError(
                f"{where}: {module} has {scale} but not {needed}; complete the download"
            )
        self.weights[logical] = parts

    def _check_codes(self, specs: Mapping[str, Spec], *, where: str) -> None:
        """Refuses codes whose scale the format is not known to have, such as fused experts'."""
        for name, spec in specs.items():
            if name not in self.held and spec.dtype.startswith(("F4", "F6_", "F8_")):
                raise UnsupportedModelError(
                    f"{where}: {name} is {spec.dtype}, and nothing says which tensor is its scale; "
                    "of quantised experts, each must be a matrix of its own: save the model with "
                    "save_pretrained(DIR, save_original_format=True)"
                )

    def unread(self, layers: str) -> str | None:
        """A setting that speaks of layers by number where the format is not known to."""
        return unread_layer_names(self.settings, self.format.names, layers)

    def renumbered(
        self, family: ModelFamily, names: Iterable[str], kept: tuple[int, ...], *, layers: str
    ) -> dict[str, Any]:
        """The settings of the model that has only the layers `kept`.

        Args:
            names: all tensors of the files.
            layers: path of the list of layers in the module tree, which the settings use.

        Raises:
            UnsupportedModelError: a name in the settings cannot be renumbered.
        """
        located = (family.layer_of(name) or (None, name) for name in names)
        modules = {(layer, name.rpartition(".")[0]) for layer, name in located}
        renumbering = Renumbering(modules, layers, kept)
        return self.format.tidied(renumber(self.settings, self.format.names, renumbering))


def _check_dense(spec: Spec, name: str, *, where: str) -> None:
    if spec.dtype.startswith(("F4", "F6_", "F8_", "I", "U", "BOOL", "C")):
        raise CheckpointError(
            f"{where}: {name} is {spec.dtype} but has no scale; complete the download"
        )


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [..., n * (32 // bits)] int32 of int32 words [..., n], the lowest bits first."""
    if words.dtype is not torch.int32:
        raise ValueError(f"packed codes are {words.dtype}, not int32")
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def spread(
    values: torch.Tensor,
    shape: tuple[int, int],
    *,
    groups: torch.Tensor | None = None,
    block: tuple[int, int] | None = None,
) -> torch.Tensor:
    """`values`, one per tensor, row, group or block, as float32 that broadcasts to `shape`.

    Args:
        values: [], [1], [out, 1], [out or 1, groups] or [row blocks, column blocks].
        groups: [in] the group of each column, where groups are not runs of equal length.
        block: rows and columns of a block.
    """
    rows, columns = shape
    values = values.to(torch.float32)
    if values.numel() == 1:
        return values.reshape(1, 1)
    if values.ndim != 2:
        raise ValueError(f"scales {tuple(values.shape)} do not fit a weight {shape}")
    if block is not None:
        if tuple(values.shape) != (-(-rows // block[0]), -(-columns // block[1])):
            raise ValueError(f"{tuple(values.shape)} blocks of {block} do not cover {shape}")
        wide = values.repeat_interleave(block[1], 1)[:, :columns]
        return wide.repeat_interleave(block[0], 0)[:rows]
    if values.shape[0] not in (1, rows):
        raise ValueError(f"scales {tuple(values.shape)} do not fit a weight {shape}")
    if groups is not None:
        return values[:, groups.long()]
    if columns % values.shape[1]:
        raise ValueError(f"{columns} columns do not make {values.shape[1]} equal groups")
    return values.repeat_interleave(columns // values.shape[1], 1)
