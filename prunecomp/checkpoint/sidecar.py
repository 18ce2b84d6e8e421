"""Sidecars: the matrices of a plan's repairs, each round's in a safetensors file beside the plan.

A sidecar is named after its digest, so that a plan that grows round by round only adds files, and
what is there already is never touched.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prunecomp.checkpoint.digests import stamp
from prunecomp.checkpoint.index import TensorSpec, read_header
from prunecomp.checkpoint.output import output_file, write_text
from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import CheckpointError, NumericError, PlanError
from prunecomp.plan import PrunePlan
from prunecomp.rounds import Matrices

_FLOATS = {"F64", "F32", "F16", "BF16"}


def _sha256(path: Path) -> str:
    return _sha256_as(path, stamp(path))


@functools.cache
def _sha256_as(path: Path, _: str) -> str:
    """Read once for each state of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _scratch() -> Path:
    """Where sidecars lie until their plan is written; gone when the process ends."""
    directory = tempfile.TemporaryDirectory(prefix="prunecomp-")
    weakref.finalize(_scratch, directory.cleanup)
    return Path(directory.name)


def new_matrices(tensors: Mapping[str, torch.Tensor], *, factor: float = 1.0) -> Matrices:
    """The repair that gives weights the values `tensors`, by their names in the source.

    Args:
        tensors: float32, or of the dtype that the source has.
        factor: that the stream is scaled by as well; see `Matrices`.

    Raises:
        NumericError: a value is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NumericError(f"the new value of {name} is not finite; use --dtype float32")
    partial = _scratch() / "partial.safetensors"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={"format": "pt"})
    sha256 = _sha256(partial)
    made = Matrices(
        f"matrices-{sha256[:16]}.safetensors", sha256, tuple(sorted(plain)), factor, _scratch()
    )
    partial.replace(_scratch() / made.file)
    return made


def matrices_of(plan: PrunePlan) -> list[tuple[int, Matrices]]:
    """The repairs that have sidecars, with the numbers of their rounds, from one on."""
    return [
        (number, r.repair)
        for number, r in enumerate(plan.rounds, start=1)
        if isinstance(r.repair, Matrices)
    ]


def write_plan(path: Path, plan: PrunePlan, *, overwrite: bool = False) -> None:
    """Writes a plan as JSON, and what its repairs need beside it, as far as it is not there.

    Raises:
        UsageError: the file exists, or its directory cannot be written.
        PlanError: a sidecar is missing or damaged.
    """
    made: list[Path] = []
    try:
        for number, repair in matrices_of(plan):
            target = path.parent / repair.file
            if target.is_file() and _sha256(target) == repair.sha256:
                continue
            source = _found(number, repair)
            made += [] if target.exists() else [target]
            with output_file(target, overwrite=True) as partial:
                shutil.copyfile(source, partial)
        write_text(
            path, json.dumps(plan.to_json(), indent=2, allow_nan=False) + "\n", overwrite=overwrite
        )
    except BaseException:
        for target in made:
            target.unlink(missing_ok=True)
        raise


def _found(number: int, repair: Matrices) -> Path:
    path = (repair.directory or Path()) / repair.file
    if not path.is_file():
        raise PlanError(
            f"{path}: the matrices of round {number} of the plan are not there; put the file "
            "beside the plan"
        )
    try:
        found = _sha256(path)
    except OSError as error:
        raise PlanError(
            f"{path}: cannot read the matrices of round {number} ({error.strerror}); check the "
            "permissions"
        ) from error
    if found != repair.sha256:
        raise PlanError(
            f"{path}: is not the file that round {number} of the plan was made with (SHA-256 "
            f"{found[:12]}..., not {repair.sha256[:12]}...); restore it"
        )
    return path


def sources_of(checkpoint: Checkpoint, plan: PrunePlan | None) -> dict[str, TensorSpec]:
    """All that edits of `plan` may read: tensors of the files by name, of sidecars by key.

    Raises:
        PlanError: a sidecar is missing, damaged, or does not fit the checkpoint.
    """
    found = dict(checkpoint.index)
    gone: set[int] = set()
    for number, done in enumerate(() if plan is None else plan.rounds, start=1):
        gone.update(done.removed)
        _check_names(checkpoint, number, done.repair.weights, gone)
        if isinstance(done.repair, Matrices):
            for spec in _read(checkpoint, number, done.repair):
                found[done.repair.key(spec.name)] = spec
    return found


def _check_names(checkpoint: Checkpoint, number: int, weights: tuple[str, ...], gone) -> None:
    for name in weights:
        if name in checkpoint.held or name not in checkpoint:
            kind = "is quantised" if name in checkpoint.dense else "is no tensor of the model"
            raise PlanError(
                f"{checkpoint.path}: round {number} of the plan gives {name} a new value, but it "
                f"{kind}; give the model that was planned"
            )
        located = checkpoint.family.layer_of(name)
        if located is not None and located[0] in gone:
            raise PlanError(
                f"round {number} of the plan gives {name} a new value, but its layer is removed "
                "by then; make the plan again"
            )


def _read(checkpoint: Checkpoint, number: int, repair: Matrices) -> list[TensorSpec]:
    """The tensors of a sidecar, checked against the plan and the checkpoint."""
    path = _found(number, repair)
    try:
        specs = read_header(path)
    except CheckpointError as error:
        raise PlanError(str(error)) from error
    if sorted(spec.name for spec in specs) != sorted(repair.weights):
        raise PlanError(
            f"{path}: does not hold the {len(repair.weights)} weights that round {number} of the "
            "plan names; make the plan again"
        )
    for spec in specs:
        old = checkpoint.index[spec.name]
        if spec.shape != old.shape or spec.dtype not in {old.dtype, "F32"} & _FLOATS:
            raise PlanError(
                f"{path}: {spec.name} is {spec.dtype} {list(spec.shape)}, the model's is "
                f"{old.dtype} {list(old.shape)}; give the model that was planned"
            )
    _check_finite(path, repair.sha256)
    return specs


@functools.cache
def _check_finite(path: Path, _: str) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            if not torch.isfinite(file.get_tensor(name)).all():
                raise PlanError(f"{path}: {name} has values that are not finite; make it again")
