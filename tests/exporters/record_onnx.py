"""The record of which families export to ONNX and check, and the command that writes it.

``python -m tests.exporters.record_onnx docs/verified_onnx.json [FAMILY ...]`` exports tiny models
of all families, or of these, and keeps what the file says of the others: every variant that the
conformance tests know, and the rotary embeddings that depend on the length. The tests hold a new
run against the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from prunecomp.errors import PruneCompError
from prunecomp.families import FAMILIES
from tests.families import tiny
from tests.serving.record import fields

EXPORTS, REFUSED, FAILS = "exports", "not exported", "fails the check"
#: Where the tiny config does not list its layers.
LAYERS = 2
#: The length above which the frequencies of the tiny models change; the check crosses it.
SWITCH = 16
PACKAGES = ("transformers", "torch", "onnx", "onnxruntime")
Config = Mapping[str, Any]


def write_model(
    family: str, directory: Path, layers: int = LAYERS, variant: int = 0, rope: Config | None = None
) -> Path:
    """A tiny model as transformers writes it; its config says the usual eps again.

    It has an end of text, without which onnxruntime-genai takes token 0 for one.

    Args:
        rope: put into ``rope_parameters``, of every type of layer where there are several.
    """
    if "layer_types" in FAMILIES.get(family).tiny[0]:
        layers = tiny.DEPTH
    model = tiny.build(family, variant, num_hidden_layers=layers, n_layer=layers)
    model.generation_config.eos_token_id = model.config.eos_token_id = tiny.VOCABULARY - 1
    model.save_pretrained(directory)
    if rope:
        _write_rope(directory / "config.json", rope, half(model))
    return directory


def half(model: Any) -> int:
    """How many frequencies a rotary embedding of the model has."""
    return next(len(b) for name, b in model.named_buffers() if name.endswith("inv_freq"))


def _write_rope(path: Path, rope: Config, count: int) -> None:
    config = json.loads(path.read_text())
    if rope["rope_type"] == "longrope":
        rope = {
            **rope, "original_max_position_embeddings": SWITCH,
            "short_factor": [1.0] * count, "long_factor": [2.0 + i for i in range(count)],
        }  # fmt: skip
        config["original_max_position_embeddings"] = SWITCH
    else:
        config["max_position_embeddings"] = SWITCH
    found = config["rope_parameters"]
    several = "rope_theta" not in found
    for each in found.values() if several else (found,):
        each.update(rope)
    path.write_text(json.dumps(config))


def _export(model: Path, target: Path) -> dict[str, Any]:
    """What becomes of one model: its status, the largest difference, or the reason."""
    import argparse

    from exporters import EXPORTERS
    from exporters.base import Source
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.errors import VerificationError
    from prunecomp.progress import Progress

    target.mkdir()
    parser = argparse.ArgumentParser()
    exporter = EXPORTERS.get("onnx")
    exporter.add(parser.add_argument_group())
    try:
        source = Source(Checkpoint(model), None)
        facts = exporter.export(source, target, parser.parse_args([]), Progress(quiet=True))
    except VerificationError as error:
        return {"status": FAILS, "detail": str(error)}
    except PruneCompError as error:
        return {"status": REFUSED, "detail": str(error).removeprefix(f"{model}: ")}
    return {"status": EXPORTS, "difference": float(f"{facts['difference']['relative']:.1e}")}


def ropes(family: str) -> list[dict[str, Any]]:
    """The rotary embeddings to try that depend on the length."""
    if not getattr(tiny.config_of(family, 0), "rope_parameters", None):
        return []
    return [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope"}]


def variants(family: str) -> Iterator[tuple[dict[str, Any], int, Config | None]]:
    """``(what the config says, variant, rope)`` of all but the first variant."""
    for number, config in enumerate(FAMILIES.get(family).tiny):
        if number:
            yield dict(config), number, None
    for rope in ropes(family):
        yield {"rope_type": rope["rope_type"]}, 0, rope


def measure(family: str, scratch: Path) -> dict[str, Any]:
    """What becomes of one family: that of its first variant, and of all `variants`."""
    found = _export(write_model(family, scratch / "model"), scratch / "out")
    found["variants"] = []
    for number, (config, variant, rope) in enumerate(variants(family)):
        model = write_model(family, scratch / f"model-{number}", 1, variant, rope)
        made = _export(model, scratch / f"out-{number}")
        found["variants"].append({"config": config, **made})
    found["detail"] = detail(found)
    return found


def detail(found: Config) -> str:
    """One line for people: why not, and which settings change the answer."""
    said = [found.get("detail", "")]
    for each in found["variants"]:
        if each["status"] != found["status"]:
            reason = f" ({each['detail']})" if "detail" in each else ""
            said.append(f"with {fields(each['config'])}: {each['status']}{reason}")
    return "; ".join(filter(None, said))


def main() -> None:
    file, names = Path(sys.argv[1]), sys.argv[2:] or list(FAMILIES.names())
    found = json.loads(file.read_text())["families"] if file.exists() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = measure(name, Path(scratch))
        sys.stdout.write(f"{name}: {found[name]}\n")
        sys.stdout.flush()
        record = {
            **{package: metadata.version(package).partition("+")[0] for package in PACKAGES},
            "precision": "fp32",
            "layers": LAYERS,
            "families": {n: found[n] for n in sorted(found) if n in FAMILIES.names()},
        }
        file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
