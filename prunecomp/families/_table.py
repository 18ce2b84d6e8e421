"""The table of families, for people and for programs; `docs/families.md` is made from it.

What was verified stands in files of the repository, not in the code: the pinned version of
transformers, in which the conformance tests run for every family, what vLLM was seen to do, and
what the ONNX export was.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunecomp.families import supported_types
from prunecomp.families._refused import REFUSED
from prunecomp.families._rules import Requires
from prunecomp.families.base import ModelFamily

REPOSITORY = Path(__file__).parents[2]
PINS = REPOSITORY / "constraints" / "cpu.txt"
VLLM_RESULTS = REPOSITORY / "docs" / "verified_vllm.json"
ONNX_RESULTS = REPOSITORY / "docs" / "verified_onnx.json"
NOT_CHECKED = "not checked"
#: What stands in the narrow column of the terminal for each kind of vLLM result.
MARKS = {
    "agrees": "yes",
    "agrees through the Transformers backend": "tf",
    "not served": "no",
    "differs before pruning": "diff",
    NOT_CHECKED: "-",
}


def pinned_transformers(pins: Path = PINS) -> str:
    """The version of transformers in which the tests run; ``unknown`` outside the repository."""
    text = pins.read_text(encoding="utf-8") if pins.is_file() else ""
    found = re.search(r"^transformers==(\S+)", text, re.MULTILINE)
    return found[1] if found else "unknown"


def vllm_results(path: Path = VLLM_RESULTS) -> dict[str, Any]:
    """``{"vllm": version, "families": {type: {"status": ..., "detail": ...}}}``."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"families": {}}


def onnx_results(path: Path = ONNX_RESULTS) -> dict[str, Any]:
    """``{"families": {type: {"status": ..., "difference": ..., "detail": ...}}}``."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"families": {}}


def _head(family: ModelFamily) -> str:
    """What becomes of a head that shares the embedding's weight."""
    default = "tied" if family.tied_by_default else "not tied"
    if family.embedding not in family.embeddings:
        return f"{default} by default; the shared tensor is never scaled"
    if not family.final_norm:
        return f"{default} by default; upstream folding is refused when tied"
    return f"{default} by default; upstream, the final norm takes the inverse when tied"


def _restrictions(family: ModelFamily) -> list[str]:
    found = []
    if family.removal_unit > 1:
        found.append(f"layers go in runs of {family.removal_unit}: {family.removal_reason}")
    found += [
        f"only with {rule.key} = {json.dumps(rule.value)}: {rule.reason}"
        for rule in family.rules
        if isinstance(rule, Requires)
    ]
    if family.folds != ("downstream", "upstream"):
        found.append(f"folds: {', '.join(family.folds)}")
    return found


def row(
    family: ModelFamily,
    results: Mapping[str, Any],
    transformers: str,
    exports: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that is said of one family.

    Args:
        results: of vLLM.
        exports: of the ONNX exporter.
    """
    found = results["families"].get(family.model_type, {})
    exported = (exports or {"families": {}})["families"].get(family.model_type, {})
    return {
        "model_type": family.model_type,
        "released": family.released,
        "architectures": list(family.architectures),
        "layers": family.layers,
        "multiplied": list(family.writers),
        "divided": list(family.readers),
        "stream_starts_at": list(family.embeddings),
        "norms_of_one_plus_weight": list(family.unit_offset),
        "tied_by_default": family.tied_by_default,
        "head": _head(family),
        "depth_key": family.depth_key,
        "config_fields": [key for rule in family.rules for key in rule.keys],
        "removal_unit": family.removal_unit,
        "restrictions": _restrictions(family),
        "verified": {
            "transformers": transformers,
            "vllm": results.get("vllm"),
            "vllm_on": ", ".join(results[k] for k in ("device", "dtype") if k in results),
            "vllm_status": found.get("status", NOT_CHECKED),
            "vllm_detail": found.get("detail", ""),
            "onnx_status": exported.get("status", NOT_CHECKED),
            "onnx_detail": exported.get("detail", ""),
        },
    }


def table() -> list[dict[str, Any]]:
    """One row per family, by type."""
    results, transformers, exports = vllm_results(), pinned_transformers(), onnx_results()
    families = sorted(supported_types().items())
    return [row(family, results, transformers, exports) for _, family in families]


# --- for a terminal of 100 columns


def _short(names: Sequence[str]) -> list[str]:
    """Names of projections and norms, without what can be left out."""
    cut = r"^(self_attn|self_attention|attention|attn|mlp|block_sparse_moe)\."
    modules = list(dict.fromkeys(re.sub(r"\.(weight|bias)$", "", name) for name in names))
    short = [re.sub(cut, "", name) for name in modules]
    return short if len(set(short)) == len(modules) else modules


def _fit(words: Sequence[str], width: int) -> str:
    """As many words as fit, and the number of the others."""
    for count in range(len(words), 0, -1):
        rest = f" +{len(words) - count}" if count < len(words) else ""
        text = " ".join(words[:count]) + rest
        if len(text) <= width:
            return text
    return f"{words[0][: width - 4]}... " if words else ""


def _vllm(verified: Mapping[str, Any]) -> str:
    return f"vLLM {verified['vllm']}" if verified["vllm"] else "vLLM"


def _mark(status: str) -> str:
    return MARKS.get(status.partition(":")[0], "?")


def terminal_lines(rows: Sequence[Mapping[str, Any]], *, width: int = 100) -> list[str]:
    """The table, cut to fit; `detail_lines` has all of a family."""
    form = "{:<17} {:<20} {:<27} {:<4} {:<23} {}"
    lines = [form.format("type", "layers", "folded into", "tied", "fields by layer", "vLLM")]
    for entry in rows:
        lines.append(form.format(
            entry["model_type"] + "*" * bool(entry["restrictions"]), entry["layers"],
            _fit(_short(entry["multiplied"] + entry["divided"]), 27),
            "yes" if entry["tied_by_default"] else "no", _fit(entry["config_fields"], 23),
            _mark(entry["verified"]["vllm_status"]),
        ).rstrip())  # fmt: skip
    verified = rows[0]["verified"]
    notes = [
        f"{len(rows)} types; all pass the conformance tests with transformers "
        f"{verified['transformers']}. tied: what a config means that does not say it.",
        f"{_vllm(verified)}: yes, agrees; tf, agrees through its Transformers backend; "
        "no, not served; diff, differs before pruning; -, not checked.",
        f"*: with restrictions. {len(REFUSED)} more types are refused for a known reason. "
        "All of a type, or why it is refused: families TYPE.",
    ]
    return [*lines, "", *(line for note in notes for line in textwrap.wrap(note, width))]


def refused_lines(model_type: str, *, width: int = 100) -> list[str]:
    """Why a type is refused."""
    return textwrap.wrap(f"{model_type} is refused: {REFUSED[model_type]}", width)


def detail_lines(entry: Mapping[str, Any], *, width: int = 100) -> list[str]:
    """All of one family."""
    verified = entry["verified"]
    vllm = ": ".join(x for x in (verified["vllm_status"], verified["vllm_detail"]) if x)
    told = {
        "type": entry["model_type"],
        "models": entry["released"],
        "class": ", ".join(entry["architectures"]),
        "layers": entry["layers"],
        "multiplied": ", ".join(entry["multiplied"]),
        "divided": ", ".join(entry["divided"]) or "nothing",
        "upstream also": ", ".join(entry["stream_starts_at"]),
        "head": entry["head"],
        "depth": entry["depth_key"],
        "other fields": ", ".join(entry["config_fields"]) or "none",
        "restrictions": "; ".join(entry["restrictions"]) or "none",
        "transformers": f"{verified['transformers']}: conformance tests pass",
        "vLLM": f"{verified['vllm']}: {vllm}" if verified["vllm"] else vllm,
        "ONNX": ": ".join(x for x in (verified["onnx_status"], verified["onnx_detail"]) if x),
    }
    return [
        line
        for name, text in told.items()
        for line in textwrap.wrap(
            f"{name:<14}{text}", width, subsequent_indent=" " * 14, break_on_hyphens=False
        )
    ]


# --- docs/families.md

HEADER = """\
<!-- made by `make docs` from prunecomp/families and docs/verified_*.json; do not edit -->

# Model families

`python cli.py families` prints this table shorter, `families TYPE` all of one type, and
`families --json` everything. [extending.md](extending.md) shows how to add one.

- **multiplied**: what writes to the residual stream; multiplied by the factor before a cut
  (upstream), or divided by it behind the cut (downstream). All that exist are scaled.
- **divided**: what reads the stream without a norm; scaled by the inverse.
- **fields by layer**: what config.json says of single layers, besides the depth. They are
  rewritten, so that each layer that stays is what it was.
- **restrictions**: a checkpoint that breaks one is refused before anything is read.
- Every type passes the conformance tests (`tests/families`) with transformers {transformers}:
  tiny random models of the real class, every fold, logits and every boundary against the original
  with the layers skipped.
- **{vllm}**: whether it gives the log-probabilities of transformers for the written files of tiny
  models{where}.
- **ONNX**: whether `export --format onnx` writes a tiny model of the type, and ONNX Runtime gives
  the logits of transformers ([onnx.md](onnx.md)). Configs that were tried and gave another answer
  are named. Quantised checkpoints are refused.
"""


def _code(names: Sequence[str]) -> str:
    return "<br>".join(f"`{name}`" for name in names)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole document."""
    verified = rows[0]["verified"]
    lines = [
        HEADER.format(
            transformers=verified["transformers"],
            vllm=_vllm(verified),
            where=f" ({verified['vllm_on']})" if verified["vllm_on"] else "",
        ),
        "| type | models | layers | multiplied | divided | head | fields by layer | restrictions "
        "| vLLM | ONNX |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        found = entry["verified"]
        cells = [
            f"`{entry['model_type']}`", entry["released"], f"`{entry['layers']}`",
            _code(entry["multiplied"]), _code(entry["divided"]), entry["head"],
            _code(entry["config_fields"]), "; ".join(entry["restrictions"]),
            ". ".join(x for x in (found["vllm_status"], found["vllm_detail"]) if x),
            ". ".join(x for x in (found["onnx_status"], found["onnx_detail"]) if x),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines += ["", "## Refused", "", "| type | why |", "|---|---|"]
    by_reason: dict[str, list[str]] = {}
    for model_type, reason in REFUSED.items():
        by_reason.setdefault(reason, []).append(f"`{model_type}`")
    lines += [f"| {', '.join(types)} | {reason} |" for reason, types in by_reason.items()]
    return "\n".join(lines) + "\n"
