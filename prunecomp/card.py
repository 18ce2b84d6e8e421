"""The model card of a written model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecomp.errors import printable
from prunecomp.hub import cached_repository
from prunecomp.plan import PrunePlan
from prunecomp.published import published

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
_WITH_MATRICES = (
    "`cli.py apply SOURCE PLAN --output DIR` repeats this directory byte for byte;\n"
    "new values of weights lie beside the plan."
)
#: What a card says of licence and origin.
_CARRIED = ("license", "license_name", "license_link", "base_model")
#: Bytes of a card that are read for it.
_MOST_BYTES = 1 << 16
_MOST_VALUES, _MOST_CHARACTERS = 50, 500
#: A repository on the hub; some old ones have no owner.
_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_MARKDOWN = re.compile(r"[\\`*<>\[\]|]")


@dataclass(frozen=True)
class Origin:
    """What a card's front matter says of where a model comes from.

    Attributes:
        base_model: hub repositories of the model, or models, that it was made from, where that is
            known.
        license: the keys about it that the source's own card has.
    """

    base_model: str | list[str] | None = None
    license: Mapping[str, str | list[str]] = field(default_factory=dict)


def origin_of(source: Path, base_model: str | None) -> Origin:
    """What is known of the model directory `source`, from its own card and its place.

    Args:
        base_model: the hub repository that it is, where that is known for sure.
    """
    said = _said(source / "README.md")
    base = said.pop("base_model", None)
    if base_model is not None:
        base = base_model.partition("@")[0]
    return Origin(base or cached_repository(str(source.absolute())), said)


def _said(card: Path) -> dict[str, str | list[str]]:
    """What a card's front matter says under the keys of `_CARRIED`, where it is of a sound kind."""
    import yaml

    try:
        with card.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8-sig", errors="ignore")
        matter = re.match(r"---\s*\n(.*?\n)---\s*\n", text.replace("\r\n", "\n"), re.DOTALL)
        found = yaml.safe_load(matter[1]) if matter else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}  # no card, or one that no reader understands
    if not isinstance(found, dict):
        return {}
    values = {key: _sound(found[key], key) for key in _CARRIED if key in found}
    return {key: value for key, value in values.items() if value}


def _sound(value: Any, key: str) -> str | list[str]:
    """`value`, or what of a list of values is sound: short texts, or names of repositories."""
    if isinstance(value, list):
        return [item for item in value[:_MOST_VALUES] if _is_sound(item, key)]
    return value if _is_sound(value, key) else ""


def _is_sound(value: Any, key: str) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_CHARACTERS:
        return False
    return bool(_MODEL.fullmatch(value)) if key == "base_model" else value.isprintable()


def _front_matter(origin: Origin, library: str, tags: Sequence[str]) -> str:
    import yaml

    matter: dict[str, Any] = {"base_model": origin.base_model} if origin.base_model else {}
    matter |= {
        **origin.license, "library_name": library, "pipeline_tag": "text-generation",
        "tags": list(tags),
    }  # fmt: skip
    text = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text}---\n\n"


def _text(value: str) -> str:
    """`value`, which a file or a path holds, as text of a card: on one line, and no markup."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(value))


def _code(value: str) -> str:
    """The same between backticks, where nothing can be escaped."""
    return printable(value).replace("`", "'").replace("|", "/")


def _short(name: str) -> str:
    """The last part of a path or of a repository's name, without a revision."""
    return _text(name.rstrip("/").rpartition("/")[2].partition("@")[0] or name)


def _front(prefix: Sequence[int]) -> str:
    """What every window of the calibration text began with."""
    return f", each beginning with token {', '.join(map(str, prefix))}" if prefix else ""


def _perplexity(plan: PrunePlan) -> str:
    if not plan.perplexity:
        return "Not measured at this depth."
    lines = ["| text | base | pruned |", "|---|---:|---:|"]
    for text, values in plan.perplexity.items():
        pruned = f"{values['pruned']:.3f}" if "pruned" in values else "not measured at this depth"
        lines.append(f"| {_text(text)} | {values['base']:.3f} | {pruned} |")
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
    nbytes: tuple[int, int] | None = None, kind: str = _CHECKPOINT, again: str | None = None,
    library: str = "transformers", tags: Sequence[str] = (), converted: Converted | None = None,
) -> str:  # fmt: skip
    """The text of README.md of a compressed model.

    Args:
        parameters: of the result and of the source.
        nbytes: of the weights of the result and of the source.
        kind: what it is and who loads it.
        again: how it is made again; None for `apply`.
        library: that loads it, as the hub calls it.
        tags: further ones.
        converted: what the source was converted from, if it was.
    """
    plan = published(plan)
    recipe, calibration = plan.recipe, plan.calibration
    folded = "" if recipe.compensation == "none" else f", folded {recipe.fold}"
    matter = _front_matter(origin, library, ["prunecomp", "depth-pruning", *tags])
    return matter + _TEMPLATE.format(
        short=_short(plan.source.name),
        name=_code(plan.source.name),
        model_type=_text(plan.source.model_type),
        kind=kind,
        again=again or (_WITH_MATRICES if any(r.repair.weights for r in plan.rounds) else _AGAIN),
        removed_count=len(plan.removed),
        depth=plan.source.num_hidden_layers,
        removed=", ".join(map(str, plan.removed)),
        kept=", ".join(map(str, plan.kept)),
        metric=_text(recipe.metric),
        strategy=_text(recipe.strategy),
        compensation=_text(recipe.compensation) + folded,
        calibration=(
            f"{_text(calibration.source)}, {calibration.samples} x {calibration.seq_len} tokens, "
            f"seed {calibration.seed}" + _front(calibration.prefix)
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
        short=_short(name),
        name=_code(name),
        model_type=_text(model_type),
        kind=kind,
        source=_source(converted),
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
