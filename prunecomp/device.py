"""Where and in which precision the calibration passes run."""

from __future__ import annotations

import os

import torch

from prunecomp.errors import UsageError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Raises:
        UsageError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # each process of torchrun has its own
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: not a device; use auto, cpu or cuda[:N]") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: not supported; use auto, cpu or cuda[:N]")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s); "
            "use auto or cpu"
        )
    return device


def resolve_dtype(name: str, checkpoint_dtypes: set[str]) -> torch.dtype:
    """The compute dtype: `name`, or for ``auto`` the one that the weights are stored in.

    Args:
        name: ``auto`` or a key of `DTYPES`.
        checkpoint_dtypes: safetensors dtypes of the weights, such as ``{"BF16"}``. Mixed or
            unusual ones give float32.
    """
    if name == "auto":
        stored = {"BF16": torch.bfloat16, "F16": torch.float16}
        return (
            stored.get(next(iter(checkpoint_dtypes)), torch.float32)
            if (len(checkpoint_dtypes) == 1)
            else torch.float32
        )
    if name not in DTYPES:
        raise UsageError(f"--dtype {name}: choose from auto, {', '.join(DTYPES)}")
    return DTYPES[name]
