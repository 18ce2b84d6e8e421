"""The graph of a decoder with key-value cache, traced by transformers' own ONNX exporter.

Added here: the names and free axes of the usual layout, and weights that are stored once, in the
order in which ONNX Runtime multiplies them, and at the precision that was asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from prunecomp.errors import MissingDependencyError, PruneCompError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn

#: Above this many bytes the weights go into a file beside the graph; protobuf ends at 2 GB.
EXTERNAL_ABOVE_BYTES = 1_800_000_000
#: What the pinned torch translates to, and the oldest that its translations are written for.
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
#: Names of the free axes of inputs and outputs.
BATCH, NEW, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_length"
HEADS, HEAD_SIZE = "num_key_value_heads", "head_size"


def first_line(error: BaseException) -> str:
    """What an error of another package says, on one short line."""
    return shorten((str(error).strip() or repr(error)).splitlines()[0], 160, placeholder=" ...")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The libraries of ONNX talk at length; what matters is checked afterwards."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _small_terms_stay() -> Iterator[None]:
    """In this block, the optimiser drops ``x + c`` for a `c` of zero only.

    It drops any below 1e-8: also the eps of a norm, or what keeps the sum of a router's scores from
    zero, without which there are divisions of zero by zero.
    """
    from onnxscript import rewriter
    from onnxscript.rewriter import _pattern_ir as pattern_ir

    zeros = {
        value: value._abs_tol
        for rule in rewriter._DEFAULT_REWRITE_RULES
        for node in rule._target_pattern
        for value in node.inputs
        if isinstance(value, pattern_ir.Constant) and value.value == 0
    }
    for value in zeros:
        value._abs_tol = 0.0
    try:
        yield
    finally:
        for value, tolerance in zeros.items():
            value._abs_tol = tolerance


def takes_positions(model: nn.Module) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _sample(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs to trace with, and which of their axes are free.

    Some past, some new tokens; sizes that are equal nowhere by chance. A plain `DynamicCache`
    keeps the whole past in every layer; windows are in the masks, where they are exact.
    """
    import torch
    from torch.export import Dim
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    batch, past, new = 2, 5, 3
    cache = DynamicCache()
    with torch.no_grad():
        prompt = torch.ones(batch, past, dtype=torch.long)
        model(input_ids=prompt, past_key_values=cache, use_cache=True)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UnsupportedModelError(
            f"{model.config.model_type}: its cache is not one of keys and values for every layer, "
            "and the layout of ONNX decoders knows no other"
        )
    rows, held = Dim(BATCH), Dim(PAST)
    inputs = {
        "input_ids": torch.ones(batch, new, dtype=torch.long),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.long),
        "position_ids": torch.arange(past, past + new).expand(batch, -1),
        "past_key_values": cache,
    }
    new_tokens = Dim(NEW)
    free: dict[str, Any] = {name: {0: rows, 1: new_tokens} for name in inputs}
    free["attention_mask"] = {0: rows, 1: Dim.AUTO}
    free["past_key_values"] = [{0: rows, 2: held}] * (2 * len(cache.layers))
    if not takes_positions(model):
        del inputs["position_ids"], free["position_ids"]
    return inputs, free


def _name_values(graph: onnx_ir.Graph) -> None:
    """``...layers.N.keys`` becomes ``past_key_values.N.key`` or ``present.N.key``.

    The heads of the past are free axes, though one size is right: optimum sizes the empty past
    by hidden_size / num_attention_heads whatever the config says, and ONNX Runtime minds the size
    of what is empty only where the graph declares one (github.com/huggingface/optimum/issues/2379).
    """
    import onnx_ir

    axes = {
        "input_ids": (BATCH, NEW), "position_ids": (BATCH, NEW), "attention_mask": (BATCH, TOTAL),
        "logits": (BATCH, NEW),
    }  # fmt: skip
    sides = ((graph.inputs, "past_key_values", PAST), (graph.outputs, "present", TOTAL))
    for values, prefix, length in sides:
        for value in values:
            shape = list(value.shape)
            if "past_key_values" in value.name:
                _, _, layer, kind = value.name.rsplit(".", 3)
                value.name = f"{prefix}.{layer}.{kind.removesuffix('s')}"
                shape[0], shape[2] = BATCH, length
                if prefix == "past_key_values":
                    shape[1], shape[3] = HEADS, HEAD_SIZE
            else:
                shape[:2] = axes[value.name]
            value.shape = onnx_ir.Shape([int(n) if str(n).isdecimal() else n for n in shape])


def _lazily(value: onnx_ir.Value, name: str, dtype: Any, make: Any, shape: Any) -> onnx_ir.Value:
    """A new initialiser beside `value`, made when it is saved, so that weights are held once."""
    import onnx_ir

    tensor = onnx_ir.LazyTensor(make, dtype=dtype, shape=onnx_ir.Shape(shape), name=name)
    made = onnx_ir.Value(
        name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(dtype), const_value=tensor
    )
    value.graph.register_initializer(made)
    return made


def _store_as_multiplied(model: onnx_ir.Model, *, share: bool) -> None:
    """Weights that are read transposed are stored transposed.

    ONNX Runtime would do it at every start, and its quantiser knows constant weights only.

    Args:
        share: leave alone what is read both ways, such as the embedding of a tied head.
    """
    import numpy as np
    import onnx_ir

    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or (share and len(weight.uses()) > 1):
            continue
        source = weight.const_value
        order = list(node.attributes["perm"].as_ints())
        shape = [source.shape[axis] for axis in order]

        def turned(source: Any = source, order: list[int] = order) -> onnx_ir.TensorProtocol:
            return onnx_ir.tensor(
                np.ascontiguousarray(source.numpy().transpose(order)), dtype=source.dtype
            )

        made = _lazily(weight, f"{weight.name}.T", source.dtype, turned, shape)
        node.outputs[0].replace_all_uses_with(made)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]


def _replace(node: onnx_ir.Node, other: onnx_ir.Node) -> None:
    """Puts `other` in the place of `node`; each has one output."""
    (old,), (new,) = node.outputs, other.outputs
    new.name, new.shape, new.type = old.name, old.shape, old.type
    node.graph.insert_before(node, other)
    old.replace_all_uses_with(new)
    node.graph.remove(node, safe=True)


def _divide_in_norms(model: onnx_ir.Model) -> None:
    """``x * (1 / sqrt(...))`` becomes ``x / sqrt(...)``, which ONNX Runtime knows as RMSNorm."""
    import onnx_ir

    for inverse in [node for node in model.graph if node.op_type == "Reciprocal"]:
        (root,), (scale,) = inverse.inputs, inverse.outputs
        for product, place in list(scale.uses()):
            if product.op_type != "Mul" or root.producer().op_type != "Sqrt":
                continue
            _replace(product, onnx_ir.node("Div", [product.inputs[1 - place], root]))


def _turn_keys_at_once(model: onnx_ir.Model) -> None:
    """Keys [batch, heads, total, size] become [batch, heads, size, total] by one Transpose.

    Torch's translation of attention flattens batch and heads for it and unflattens them
    afterwards, from where ONNX Runtime copies all keys at every step.
    """
    import onnx_ir

    for turn in [node for node in model.graph if node.op_type == "Transpose"]:
        flat, uses = turn.inputs[0].producer(), turn.outputs[0].uses()
        back = uses[0].node if len(uses) == 1 else None
        if _turns_back(flat, turn, back):
            order = {"perm": [0, 1, 3, 2]}
            _replace(back, onnx_ir.node("Transpose", [flat.inputs[0]], order))


def _turns_back(flat: onnx_ir.Node | None, turn: onnx_ir.Node, back: onnx_ir.Node | None) -> bool:
    """Whether these are [b, h, t, d] -> [b h, t, d] -> [b h, d, t] -> [b, h, d, t]."""
    if flat is None or back is None or not flat.op_type == back.op_type == "Reshape":
        return False
    whole, shapes = flat.inputs[0], [node.inputs[1].producer() for node in (flat, back)]
    if not all(shape and shape.op_type == "Concat" and len(shape.inputs) == 3 for shape in shapes):
        return False
    (_, t, d), (_, d_again, t_again) = (shape.inputs for shape in shapes)
    return (
        list(turn.attributes["perm"].as_ints()) == [0, 2, 1]
        and whole.shape is not None
        and len(whole.shape) == 4
        and (t, d) == (t_again, d_again)
    )


def _share_tied(model: onnx_ir.Model) -> None:
    """The head that is the embedding's transpose becomes a view of it; the tracer copies it."""
    import numpy as np
    import onnx_ir

    tables = [n.inputs[0] for n in model.graph if n.op_type == "Gather" and n.inputs[0].const_value]
    for node in list(model.graph):
        head = node.inputs[1] if node.op_type == "MatMul" else None
        if head is None or head.const_value is None:
            continue
        for table in tables:
            if list(head.shape) == list(table.shape)[::-1] and np.array_equal(
                head.const_value.numpy().T, table.const_value.numpy()
            ):
                turn = onnx_ir.node("Transpose", [table], {"perm": [1, 0]})
                model.graph.insert_before(node, turn)
                turn.outputs[0].name = f"{table.name}.T"
                node.replace_input_with(1, turn.outputs[0])


def _narrow_weights(model: onnx_ir.Model) -> None:
    """Matrices are stored as bfloat16 and widened when they are read; norms and biases are not."""
    import onnx_ir

    for value in list(model.graph.initializers.values()):
        source = value.const_value
        if source.dtype != onnx_ir.DataType.FLOAT or len(source.shape) < 2:
            continue

        def narrowed(source: Any = source) -> onnx_ir.TensorProtocol:
            import torch

            # torch rounds to nearest; the same tensor class keeps the bits
            found = torch.from_numpy(source.numpy().copy()).to(torch.bfloat16)
            return onnx_ir.tensor(found)

        kept = _lazily(
            value, f"{value.name}.bf16", onnx_ir.DataType.BFLOAT16, narrowed, list(source.shape)
        )
        widen = onnx_ir.node("Cast", [kept], {"to": onnx_ir.DataType.FLOAT.value})
        widen.outputs[0].name = f"{value.name}.fp32"
        widen.outputs[0].shape, widen.outputs[0].type = value.shape, value.type
        value.replace_all_uses_with(widen.outputs[0])
        model.graph.insert_before(model.graph[0], widen)
        del model.graph.initializers[value.name]


def write_graph(model: nn.Module, path: Path, *, opset: int, share: bool, narrow: bool) -> None:
    """Exports `model`, in its own dtype, to `path`.

    Args:
        share: keep the head of tied weights as a view of the embedding.
        narrow: store weights as bfloat16; all else stays in fp32.

    Raises:
        MissingDependencyError: a package of ONNX is missing.
        PruneCompError: transformers cannot trace this model.
    """
    try:
        import onnx_ir.passes.common as passes
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX export needs onnx and onnxscript ({error}); install prunecomp[onnx]"
        ) from error
    from exporters._onnx_rope import frequencies_in_graph

    with quiet():
        try:
            inputs, free = _sample(model)
            config = OnnxConfig(
                dynamic=True,
                dynamic_shapes=free,
                opset_version=opset,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            with frequencies_in_graph(model), _small_terms_stay():
                program = OnnxExporter().export(model, inputs, config)
        except PruneCompError:
            raise
        except Exception as error:  # anything can go wrong in a trace; it is theirs to say what
            raise PruneCompError(
                f"{model.config.model_type}: transformers' exporter cannot trace it "
                f"({first_line(error)})"
            ) from error
        found = program.model
        _name_values(found.graph)
        _store_as_multiplied(found, share=share)
        _divide_in_norms(found)
        _turn_keys_at_once(found)
        if share:
            _share_tied(found)
        passes.RemoveUnusedNodesPass()(found)
        passes.ClearMetadataAndDocStringPass()(found)
        if narrow:
            _narrow_weights(found)
        _save(found, path)


def _save(model: onnx_ir.Model, path: Path) -> None:
    """One file, or two with the weights in the second, by the name that optimum looks for."""
    import onnx_ir

    nbytes = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    beside = f"{path.name}_data" if nbytes > EXTERNAL_ABOVE_BYTES else None
    onnx_ir.save(model, path, external_data=beside)


def quantise(path: Path) -> None:
    """Replaces the graph at `path` by one with 8-bit weights, one scale per output channel."""
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = path.with_name("quantised")
    made.mkdir()
    large = path.with_name(f"{path.name}_data").exists()
    with quiet():
        quantize_dynamic(
            path, made / path.name, weight_type=QuantType.QInt8, per_channel=True,
            use_external_data_format=large,
        )  # fmt: skip
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink()
        if large:
            _save(onnx_ir.external_data.load_to_model(onnx_ir.load(made / path.name)), path)
        else:
            (made / path.name).rename(path)
    shutil.rmtree(made)
