"""The record of which families export to ONNX and check, and the command that writes it.

``python -m tests.exporters.record_onnx docs/verified_onnx.json [FAMILY ...]`` exports a tiny model
of all families, or of these, and keeps what the file says of the others. The tests hold a new run
against the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from prunecomp.errors import PruneCompError
from prunecomp.families import FAMILIES
from tests.families import tiny

EXPORTS, REFUSED, FAILS = "exports", "not exported", "fails the check"
#: Where the tiny config does not list its layers.
LAYERS = 2
PACKAGES = ("transformers", "torch", "onnx", "onnxruntime")


def write_model(family: str, directory: Path, layers: int = LAYERS) -> Path:
    """A tiny model as transformers writes it; its config says the usual eps again.

    It has an end of text, without which onnxruntime-genai takes token 0 for one.
    """
    if "layer_types" in FAMILIES.get(family).tiny[0]:
        layers = tiny.DEPTH
    model = tiny.build(family, 0, num_hidden_layers=layers, n_layer=layers)
    model.generation_config.eos_token_id = model.config.eos_token_id = tiny.VOCABULARY - 1
    model.save_pretrained(directory)
    return directory


def measure(family: str, scratch: Path) -> dict[str, Any]:
    """What becomes of one family: its status, the largest difference, or the reason."""
    import argparse

    from exporters import EXPORTERS
    from exporters.base import Source
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.errors import VerificationError
    from prunecomp.progress import Progress

    source = Source(Checkpoint(write_model(family, scratch / f"{family}-model")), None)
    target = scratch / family
    target.mkdir()
    parser = argparse.ArgumentParser()
    exporter = EXPORTERS.get("onnx")
    exporter.add(parser.add_argument_group())
    try:
        facts = exporter.export(source, target, parser.parse_args([]), Progress(quiet=True))
    except VerificationError as error:
        return {"status": FAILS, "detail": str(error)}
    except PruneCompError as error:
        return {"status": REFUSED, "detail": str(error)}
    return {"status": EXPORTS, "difference": float(f"{facts['difference']['relative']:.1e}")}


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
