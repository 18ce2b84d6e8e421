"""ONNX Runtime on a graph with key-value cache, as `export --format onnx` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.engines.base import Options, need
from prunecomp.errors import UsageError

FILE = "model.onnx"
_NUMPY = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16",
}  # fmt: skip


def graph_of(model: Path) -> Path | None:
    """``DIR/model.onnx``, ``DIR/onnx/model.onnx`` or ``DIR-onnx/model.onnx``."""
    places = (model, model / "onnx", model.with_name(model.name + "-onnx"))
    return next((p / FILE for p in places if (p / FILE).is_file()), None)


class _Session:
    def __init__(self, model: Path, options: Options) -> None:
        import onnxruntime

        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(
            str(graph_of(model)), providers=providers[options.device == "cpu" :]
        )
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]

    def _empty(self, name: str, batch: int) -> Any:
        import numpy as np

        wanted = self._inputs[name]
        shape = [int(size) if isinstance(size, int) else 0 for size in wanted.shape]
        shape[0] = batch
        return np.zeros(shape, dtype=_NUMPY[wanted.type])

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, stop: Sequence[int] = ()
    ) -> list[list[int]]:
        import numpy as np

        ids, made = np.array(prompts, dtype=np.int64), []
        batch, seen = len(prompts), 0
        past = {name: self._empty(name, batch) for name in self._past}
        for _ in range(new_tokens):
            length = ids.shape[1]
            positions = np.arange(seen, seen + length, dtype=np.int64)
            seen += length
            given = {
                "input_ids": ids,
                "attention_mask": np.ones((batch, seen), dtype=np.int64),
                "position_ids": np.tile(positions, (batch, 1)),
                **past,
            }
            found = dict(zip(
                self._outputs,
                self._session.run(None, {k: v for k, v in given.items() if k in self._inputs}),
                strict=True,
            ))  # fmt: skip
            ids = found["logits"][:, -1].argmax(-1).astype(np.int64)[:, None]
            past = {name: found[name.replace("past_key_values", "present")] for name in self._past}
            made.append(ids[:, 0])
            if ids[0, 0] in stop:
                break
        return np.stack(made, axis=1).tolist()

    def kv_cache_tokens(self) -> int | None:
        return None


class OnnxRuntimeEngine:
    """Looks for the graph in the model's directory and beside it."""

    summary = "ONNX Runtime, on a directory that `export --format onnx` wrote"

    def check(self, model: Path) -> None:
        need("onnxruntime", "prunecomp[onnx]")
        if graph_of(model) is None:
            raise UsageError(
                f"{model}: has no {FILE}; write one by cli.py export {model} --format onnx "
                f"-o {model}-onnx"
            )

    def load(self, model: Path, options: Options) -> _Session:
        return _Session(model, options)


ENGINE = OnnxRuntimeEngine()
