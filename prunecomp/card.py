"""The model card of a compressed model."""

from __future__ import annotations

from prunecomp.plan import PrunePlan

_TEMPLATE = """\
---
{base_model}library_name: transformers
pipeline_tag: text-generation
tags:
- prunecomp
- depth-pruning
---

# {title}

This is `{name}` with {removed_count} of its {depth} decoder layers removed, made by
prunecomp without training ([Prune&Comp](https://arxiv.org/abs/2507.18212)). It is an ordinary
{model_type} checkpoint: stock transformers and vLLM load it, no custom code is involved.

| | |
|---|---|
| removed layers (index in the source model) | {removed} |
| kept layers, in order | {kept} |
| metric, strategy | {metric}, {strategy} |
| compensation | {compensation} |
| calibration | {calibration} |
| parameters | {parameters:,} of {source_parameters:,} |
| bytes of weights | {nbytes:,} of {source_nbytes:,} |

## Perplexity

{perplexity}

## Rounds

| round | removed | factor |
|---:|---|---:|
{rounds}

`prunecomp.json` holds the whole plan: scores of every round, hashes of model and calibration
tokens, versions and seed. `cli.py apply SOURCE prunecomp.json --output DIR` repeats this
directory byte for byte.

Removing layers harms long chains of reasoning more than short answers; measure the tasks that
you care about before you deploy.
"""


def _perplexity(plan: PrunePlan) -> str:
    if not plan.perplexity:
        return "Not measured at this depth."
    lines = ["| text | base | pruned |", "|---|---:|---:|"]
    for text, values in plan.perplexity.items():
        pruned = f"{values['pruned']:.3f}" if "pruned" in values else "not measured at this depth"
        lines.append(f"| {text} | {values['base']:.3f} | {pruned} |")
    lines.append("")
    lines.append(
        "Calibration text is what the layers and factors were chosen on, so its figure flatters."
    )
    return "\n".join(lines)


def model_card(
    plan: PrunePlan, *, title: str, parameters: tuple[int, int], nbytes: tuple[int, int]
) -> str:
    """The text of README.md.

    Args:
        parameters: of the result and of the source.
        nbytes: of the weights of the result and of the source.
    """
    recipe, calibration = plan.recipe, plan.calibration
    folded = "" if recipe.compensation == "none" else f", folded {recipe.fold}"
    return _TEMPLATE.format(
        base_model=f"base_model: {plan.source.name}\n" if plan.source.on_hub else "",
        title=title,
        name=plan.source.name,
        model_type=plan.source.model_type,
        removed_count=len(plan.removed),
        depth=plan.source.num_hidden_layers,
        removed=", ".join(map(str, plan.removed)),
        kept=", ".join(map(str, plan.kept)),
        metric=recipe.metric,
        strategy=recipe.strategy,
        compensation=recipe.compensation + folded,
        calibration=(
            f"{calibration.source}, {calibration.samples} x {calibration.seq_len} tokens, "
            f"seed {calibration.seed}"
        ),
        parameters=parameters[0],
        source_parameters=parameters[1],
        nbytes=nbytes[0],
        source_nbytes=nbytes[1],
        perplexity=_perplexity(plan),
        rounds="\n".join(
            f"| {n} | {', '.join(map(str, r.removed))} | {r.factor:.6f} |"
            for n, r in enumerate(plan.rounds, start=1)
        ),
    )
