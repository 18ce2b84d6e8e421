"""``export``: a compressed model in the form that a deployment wants."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters import EXPORTERS
from prunecomp.commands.base import (
    MODEL_HELP,
    Command,
    add_check,
    add_output,
    check_planned,
    open_model,
    planned_notes,
    print_document,
    read_prefix,
)
from prunecomp.errors import UsageError, brief
from prunecomp.progress import Progress

if TYPE_CHECKING:
    from exporters.base import Facts, Source
    from prunecomp.checkpoint.reader import Checkpoint
    from prunecomp.plan import PrunePlan

EXAMPLES = """\
examples:
  cli.py export out/tiny-12 -o out/tiny-12-export
  cli.py export MODEL --plan plan.json --format safetensors -o out/minus-8
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL_HELP)
    add_output(parser, "DIR", "directory to write")
    parser.add_argument(
        "--format", default="safetensors", metavar="FORMAT",
        help=", ".join(EXPORTERS.names()) + " (default: safetensors)",
    )  # fmt: skip
    parser.add_argument("--plan", type=Path, metavar="FILE", help="apply this plan on the way")
    parser.add_argument("--rounds", type=int, metavar="K", help="only the plan's first K rounds")
    add_check(parser)
    parser.add_argument(
        "--base-model", metavar="OWNER/NAME",
        help="hub repository of the source, for the model card, where its name does not say it",
    )  # fmt: skip
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="then upload it to this hub repository"
    )
    parser.add_argument("--private", action="store_true", help="make that repository a private one")
    owners: dict[str, dict[str, argparse.Action]] = {}
    for name in EXPORTERS.names():
        exporter = EXPORTERS.get(name)
        group = parser.add_argument_group(f"--format {name}: {exporter.summary}")
        exporter.add(group)
        owners[name] = {action.dest: action for action in group._group_actions}
    parser.set_defaults(owners=_without_defaults(owners))


def _without_defaults(
    owners: Mapping[str, Mapping[str, argparse.Action]],
) -> dict[str, dict[str, tuple[str, Any]]]:
    """``{format: {attribute: (option, default)}}``; what is not given gets no attribute."""
    found = {
        name: {dest: (action.option_strings[0], action.default) for dest, action in actions.items()}
        for name, actions in owners.items()
    }
    for actions in owners.values():
        for action in actions.values():
            action.default = argparse.SUPPRESS
    return found


def _options(args: argparse.Namespace) -> argparse.Namespace:
    """`args` with the defaults of its format.

    Raises:
        UsageError: an option of another format was given.
    """
    for name, options in args.owners.items():
        for attribute, (option, default) in options.items():
            if name == args.format:
                vars(args).setdefault(attribute, default)
            elif hasattr(args, attribute):
                raise UsageError(
                    f"{option} belongs to --format {name}, not to {args.format}; leave one of "
                    "them out"
                )
    return args


def _plan(args: argparse.Namespace) -> PrunePlan | None:
    if args.plan is None:
        if args.rounds is not None:
            raise UsageError("--rounds is the number of rounds of a plan; add --plan FILE")
        return None
    return read_prefix(args.plan, args.rounds)


def _describe(args: argparse.Namespace, source: Source, target: Path, facts: Facts) -> None:
    """Adds the model card and the manifest."""
    from prunecomp.card import export_card, origin_of
    from prunecomp.hub import cached_repository, is_repository
    from prunecomp.manifest import converted_facts, plan_of, write_manifest

    before = plan_of(source.checkpoint.path)
    plan = source.plan or before
    base = args.base_model
    if base is None and plan is not None and plan.source.on_hub:
        base = plan.source.name
    if base is None and is_repository(args.model):
        base = args.model
    converted = source.checkpoint.converted
    place = os.path.realpath(args.model)  # where it lies is nobody's business
    name = base or (converted.file if converted else cached_repository(place) or Path(place).name)
    card = export_card(
        plan, name=name, model_type=source.checkpoint.family.model_type, format=args.format,
        origin=origin_of(source.checkpoint.path, base),
        library=EXPORTERS.get(args.format).library, converted=converted,
    )  # fmt: skip
    (target / "README.md").write_text(card, encoding="utf-8")
    # of a compressed model that was compressed again, the first plan stays beside the second
    earlier = {"source_plan": before} if source.plan and before else {}
    write_manifest(
        target, plan, export={"format": args.format, **facts}, **earlier,
        **converted_facts(source.checkpoint),
    )  # fmt: skip


def _lines(args: argparse.Namespace, facts: Mapping[str, Any]) -> list[str]:
    lines = [f"{key:<10} {_shown(value)}" for key, value in facts.items()]
    return [*lines, f"{'wrote':<10} {args.output}  ({args.format})"]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _dry_run(
    args: argparse.Namespace, checkpoint: Checkpoint, plan: PrunePlan | None, progress: Progress
) -> None:
    from prunecomp.checkpoint.sidecar import sources_of
    from prunecomp.rewrite import check_source
    from prunecomp.verify import check_source_model

    warnings = []
    if plan is not None:
        check_source(checkpoint, plan)
        sources_of(checkpoint, plan)
        warnings = planned_notes(plan, checkpoint, progress)
    check_source_model(checkpoint)
    document = {
        "dry_run": True, "model": str(checkpoint.home), "format": args.format,
        "bytes_to_read": checkpoint.index.nbytes, "output": str(args.output),
        "plan": None if plan is None else plan.to_json(), "warnings": warnings,
    }  # fmt: skip
    removed = "" if plan is None else f" without layers {', '.join(map(str, plan.removed))}"
    print_document(args, document, [
        f"would export {checkpoint.home} ({checkpoint.family.model_type}, "
        f"{checkpoint.index.nbytes:,} bytes of weights){removed}",
        f"as {args.format}, and write {args.output}",
    ])  # fmt: skip


def _run(args: argparse.Namespace, progress: Progress) -> int:
    from exporters.base import Source
    from prunecomp.checkpoint.output import check_output, output_directory
    from prunecomp.hub import check_upload, is_repository_name, upload

    exporter = EXPORTERS.get(args.format)
    options, plan = _options(args), _plan(args)
    if args.base_model is not None and not is_repository_name(args.base_model):
        raise UsageError(f"--base-model {brief(args.base_model)}: give a repository as OWNER/NAME")
    if args.push_to_hub is not None:
        check_upload(args.push_to_hub)
    elif args.private:
        raise UsageError("--private is about the repository of --push-to-hub; add that")
    checkpoint = open_model(args.model, progress, ahead=not args.dry_run)
    if plan is not None:
        check_planned(plan, checkpoint, args.plan)
    check_output(args.output, overwrite=args.overwrite, source=checkpoint.home)
    if args.dry_run:
        _dry_run(args, checkpoint, plan, progress)
        return 0
    source = Source(checkpoint, plan, check=args.check)
    with output_directory(
        args.output, overwrite=args.overwrite, source=checkpoint.home, note=progress.say
    ) as target:
        facts = exporter.export(source, target, options, progress)
        _describe(args, source, target, facts)
    warnings = [] if plan is None else planned_notes(plan, checkpoint, progress)
    document: dict[str, Any] = {
        "output": str(args.output), "format": args.format, "facts": facts, "warnings": warnings,
    }  # fmt: skip
    lines = _lines(args, facts)
    if args.push_to_hub:
        document["commit"] = upload(args.output, args.push_to_hub, private=args.private)
        lines.append(f"{'uploaded':<10} {document['commit']}")
    print_document(args, document, lines)
    return 0


COMMAND = Command(
    35,
    "write a model in the form that a deployment wants",
    _add,
    _run,
    EXAMPLES,
)
