"""The house rules that a machine can check: sizes, imports, silence, lean start."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from prunecomp.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("prunecomp", "exporters", "bench", "examples", "tests")
SOURCES = sorted(
    [ROOT / "cli.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
)
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] not in {"tests", "examples"}]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

#: Who may import whom: each part of the package imports parts of earlier rows only. What is not
#: listed (progress, card, ...) serves all, and imports the first three rows only.
ROWS = [
    {"errors"},
    {"registry", "rounds"},
    {"plan", "families"},
    {"fold"},
    {"plan_checks"},
    {"checkpoint"},
    {"calibration"},
    {"metrics", "compensators", "verify", "comparison", "gguf"},
    {"selection", "rewrite", "memory"},
    {"machine"},
    {"pipeline"},
    {"inspection"},
    {"commands"},
]
HEAVY = {"torch", "transformers", "vllm", "datasets", "lm_eval", "onnx", "onnxruntime"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Full names of all modules that a file imports; type-checking blocks do not count."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{name_of(path)}: star import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return found


def part_of(module: str) -> str | None:
    """``calibration`` for ``prunecomp.calibration.data``; None outside the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "prunecomp" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            size = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                size -= node.body[0].end_lineno - node.body[0].lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{name_of(path)}: {node.name} has {size} lines"


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_only_the_command_line_prints(path):
    talk = {"cli.py", "prunecomp/progress.py", "prunecomp/console.py"}
    if name_of(path) in talk or name_of(path).startswith("bench/"):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Name) and node.id == "print":
            pytest.fail(f"{name_of(path)}, line {node.lineno}: print")


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_import_rules(path):
    found, own = imports(path), path.relative_to(ROOT).with_suffix("").parts
    top = own[0]
    if top != "cli":
        assert "cli" not in found
    command = own[:2] == ("prunecomp", "commands")  # these stand above all packages, as cli.py does
    for one, other in (("exporters", "bench"), ("bench", "exporters"), ("prunecomp", "exporters"),
                       ("prunecomp", "bench")):  # fmt: skip
        if top == one and not command:
            assert not {m for m in found if m.split(".")[0] == other}
    if top != "prunecomp" or own[1] == "__init__":
        return
    listed = set().union(*ROWS)
    rank = next((number for number, row in enumerate(ROWS) if own[1] in row), 3)
    for part in {part_of(module) for module in found} - {None, own[1]}:
        assert part in set().union(*ROWS[:rank]) or part not in listed, (
            f"{name_of(path)} imports prunecomp.{part}"
        )


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_heavy_packages_are_imported_inside_functions(path):
    """All but torch, which the modules that compute may import at their top."""
    heavy = {module.split(".")[0] for module in imports(path, at_import_time=True)} & HEAVY
    assert heavy <= {"torch"}


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "oracles").glob("*.py")), ids=name_of)
def test_oracles_share_no_code_with_the_package(path):
    tops = {module.split(".")[0] for module in imports(path)}
    assert not tops & {"prunecomp", "exporters", "bench", "cli"}


def in_a_fresh_interpreter(code: str) -> set[str]:
    """Runs `code`; returns the top-level packages that are loaded afterwards."""
    report = "; import sys; print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines())


def test_help_loads_nothing_heavy():
    """The cause of a slow ``--help`` on any machine, so no clock is needed."""
    commands = "cli.build_parser().format_help(); cli.build_parser()._subparsers._actions"
    loaded = in_a_fresh_interpreter(f"import cli; {commands}")
    assert not loaded & (HEAVY | {"numpy", "huggingface_hub", "tqdm", "safetensors"})


@pytest.mark.parametrize("arguments", [["--help"], *([n, "--help"] for n in COMMANDS.names())])
def test_help_of_every_command_loads_nothing_heavy(arguments):
    code = f"""
import contextlib, io, cli
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    cli.main({arguments})
assert "usage:" in out.getvalue()
"""
    report = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "huggingface_hub"})


def test_the_plan_and_the_families_need_no_torch():
    loaded = in_a_fresh_interpreter(
        "import prunecomp.plan, prunecomp.errors, prunecomp.registry, prunecomp.card, "
        "prunecomp.families as f; f.supported_types()"
    )
    assert not loaded & (HEAVY | {"numpy"})


def test_importing_the_package_does_not_load_transformers():
    loaded = in_a_fresh_interpreter(
        "import prunecomp.pipeline, prunecomp.selection, prunecomp.calibration.runner, exporters, "
        "bench, cli"
    )
    assert not loaded & (HEAVY - {"torch"})
