"""The model card of a written model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunecomp.plan import PrunePlan

if TYPE_CHECKING:
    from prunecomp.checkpoint.converted import Converted

_TEMPLATE = """\
# {short} without {removed_count} of {depth} layers

This is `{name}` with {removed_count} of its {depth} decoder layers removed, made by
prunecomp without training ([Prune&Comp](https://arxiv.org/abs/2507.18212)). It is an ordinary
{model_type} {kind}, no custom code is involved.

| | |
|---|---|
| removed layers (index in the source model) | {removed} |
| kept layers, in order | {kept} |
| metric, strategy | {metric}, {strategy} |
| compensation | {compensation} |
| calibration | {calibration} |
{sizes}{source}
## Perplexity

{perplexity}

## Rounds

| round | removed | factor |
|---:|---|---:|
{rounds}

`prunecomp.json` holds the whole plan: scores of every round, hashes of model and calibration
tokens, versions and seed. {again}

Removing layers harms long chains of reasoning more than short answers; measure the tasks that
you care about before you deploy.
"""

_PLAIN = """\
# {short}

This is `{name}`, an ordinary {model_type} {kind}, written by prunecomp. No layer was removed.
`prunecomp.json` says how it was made.
{source}"""

_CHECKPOINT = "checkpoint: stock transformers and vLLM load it"
_AGAIN = "`cli.py apply SOURCE prunecomp.json --output DIR` repeats this\ndirectory byte for byte."
#: What a card says of licence and origin, each on a line of its own.
_CARRIED = ("license", "license_name", "license_link", "base_model")


@dataclass(frozen=True)
class Origin:
    """What a card's front matter says of where a model comes from.

    Attributes:
        base_model: hub repository of the model that it was made from, where that is known.
        license: lines of front matter that the source's own card has.
    """

    base_model: str | None = None
    license: tuple[str, ...] = ()


def origin_of(source: Path, base_model: str | None) -> Origin:
    """What is known of the model directory `source`, from its own card.

    Args:
        base_model: the hub repository that it is, where that is known for sure.
    """
    try:
        text = (source / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    matter = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    lines = re.findall(r"^([a-z_]+): *(\S.*)$", matter[1] if matter else "", re.M)
    said = {key: value for key, value in lines if key in _CARRIED}
    base = base_model or said.pop("base_model", "").strip("\"'")
    terms = tuple(f"{key}: {value}" for key, value in said.items() if key != "base_model")
    return Origin(base.partition("@")[0] or None, terms)


def _front_matter(origin: Origin, library: str, tags: Sequence[str]) -> str:
    lines = [f"base_model: {origin.base_model}"] if origin.base_model else []
    lines += [*origin.license, f"library_name: {library}", "pipeline_tag: text-generation", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---", "", ""])


def _public(name: str) -> str:
    """Without the folders of the machine that it was made on, which are nobody's business."""
    return re.sub(r"(^|\()/.*/", r"\1", name)  # "/a/b.txt", "calibration (/a/b.txt)"


def _short(name: str) -> str:
    """The last part of a path or of a repository's name, without a revision."""
    return name.rstrip("/").rpartition("/")[2].partition("@")[0] or name


def _perplexity(plan: PrunePlan) -> str:
    if not plan.perplexity:
        return "Not measured at this depth."
    lines = ["| text | base | pruned |", "|---|---:|---:|"]
    for text, values in plan.perplexity.items():
        pruned = f"{values['pruned']:.3f}" if "pruned" in values else "not measured at this depth"
        lines.append(f"| {_public(text)} | {values['base']:.3f} | {pruned} |")
    lines.append("")
    lines.append(
        "Calibration text is what the layers and factors were chosen on, so its figure flatters."
    )
    return "\n".join(lines)


def _sizes(parameters: tuple[int, int] | None, nbytes: tuple[int, int] | None) -> str:
    rows = {"parameters": parameters, "bytes of weights": nbytes}
    return "".join(
        f"| {what} | {new:,} of {old:,} |\n"
        for what, (new, old) in ((k, v) for k, v in rows.items() if v is not None)
    )


def _source(converted: Converted | None) -> str:
    """A paragraph on the file that the source was converted from."""
    if converted is None:
        return ""
    text = f"{converted.told()}. Its SHA-256 is `{converted.sha256}`."
    return "\n" + textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def model_card(
    plan: PrunePlan, *, origin: Origin, parameters: tuple[int, int] | None = None,
    nbytes: tuple[int, int] | None = None, kind: str = _CHECKPOINT, again: str = _AGAIN,
    library: str = "transformers", tags: Sequence[str] = (), converted: Converted | None = None,
) -> str:  # fmt: skip
    """The text of README.md of a compressed model.

    Args:
        parameters: of the result and of the source.
        nbytes: of the weights of the result and of the source.
        kind: what it is and who loads it.
        again: how it is made again.
        library: that loads it, as the hub calls it.
        tags: further ones.
        converted: what the source was converted from, if it was.
    """
    recipe, calibration = plan.recipe, plan.calibration
    folded = "" if recipe.compensation == "none" else f", folded {recipe.fold}"
    matter = _front_matter(origin, library, ["prunecomp", "depth-pruning", *tags])
    return matter + _TEMPLATE.format(
        short=_short(plan.source.name),
        name=_public(plan.source.name),
        model_type=plan.source.model_type,
        kind=kind,
        again=again,
        removed_count=len(plan.removed),
        depth=plan.source.num_hidden_layers,
        removed=", ".join(map(str, plan.removed)),
        kept=", ".join(map(str, plan.kept)),
        metric=recipe.metric,
        strategy=recipe.strategy,
        compensation=recipe.compensation + folded,
        calibration=(
            f"{_public(calibration.source)}, {calibration.samples} x {calibration.seq_len} tokens, "
            f"seed {calibration.seed}"
        ),
        sizes=_sizes(parameters, nbytes),
        source=_source(converted),
        perplexity=_perplexity(plan),
        rounds="\n".join(
            f"| {n} | {', '.join(map(str, r.removed))} | {r.factor:.6f} |"
            for n, r in enumerate(plan.rounds, start=1)
        ),
    )


def plain_card(
    name: str, model_type: str, *, origin: Origin, kind: str, library: str,
    tags: Sequence[str] = (), converted: Converted | None = None,
) -> str:  # fmt: skip
    """The text of README.md of a model that was only converted; arguments as in `model_card`."""
    text = _PLAIN.format(
        short=_short(name), name=name, model_type=model_type, kind=kind, source=_source(converted)
    )
    return _front_matter(origin, library, ["prunecomp", *tags]) + text


def export_card(
    plan: PrunePlan | None, *, name: str, model_type: str, format: str, origin: Origin,
    library: str = "transformers", converted: Converted | None = None,
) -> str:  # fmt: skip
    """The text of README.md of an exported model; `plan` is what it went through, if anything."""
    if format == "safetensors":
        kind, tags = _CHECKPOINT, []
    else:
        kind, tags = f"model in {format} format: what loads that format loads it", [format]
    common = {
        "origin": origin, "kind": kind, "library": library, "tags": tags, "converted": converted,
    }  # fmt: skip
    if plan is None:
        return plain_card(name, model_type, **common)
    again = "`prunecomp.json` also has\nthe settings of the export."
    return model_card(plan, again=again, **common)
