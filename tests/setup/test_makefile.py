"""What `make setup` would run, seen through a stand-in for the environment's python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


class Environment:
    """A folder that looks like a virtual environment and records the calls of its python."""

    def __init__(self, directory: Path, has_local_torch: bool = True):
        self.directory = directory
        self.calls_file = directory / "calls"
        self.python = directory / "bin/python"
        self.python.parent.mkdir(parents=True)
        refuse = "" if has_local_torch else 'case "$*" in *--no-index*) exit 1;; esac\n'
        self.python.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls_file}"\n{refuse}')
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # PYTHON is this interpreter: the version check is the only thing it is asked for.
        command = ["make", f"VENV={self.directory}", f"PYTHON={sys.executable}", *arguments]
        # The options of an outer `make test` must not reach this one.
        outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False
        )

    def installs(self) -> list[str]:
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [call.partition(" install ")[2] for call in calls if " install " in call]


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


def test_a_local_torch_wheel_wins_over_the_index(environment):
    result = environment.make("setup", "ACCELERATOR=cpu")
    assert result.returncode == 0, result.stderr
    assert environment.installs() == [
        "--no-deps --no-index torch==2.13.0+cpu",
        "--no-deps -r constraints/cpu.txt",
        "--no-deps --no-build-isolation -e .",
    ]


def test_without_a_local_wheel_torch_comes_from_the_cpu_index(tmp_path):
    environment = Environment(tmp_path / "venv", has_local_torch=False)
    environment.make("setup", "ACCELERATOR=cpu", "TORCH_INDEX=https://example.org/whl")
    assert environment.installs()[1] == (
        "--no-deps --index-url https://example.org/whl torch==2.13.0+cpu"
    )


def test_with_a_gpu_torch_and_vllm_come_from_the_default_index(environment):
    environment.make("setup", "ACCELERATOR=cuda")
    resolved, editable = environment.installs()
    assert resolved == "-c constraints/cuda.txt .[onnx,eval,data,bench,vllm,dev]"
    assert editable.endswith("-e .")


def test_a_second_run_installs_nothing(environment):
    environment.make("setup", "ACCELERATOR=cpu")
    before = environment.calls_file.read_text()
    environment.make("setup", "ACCELERATOR=cpu")
    assert environment.calls_file.read_text() == before


def test_a_failed_install_is_tried_again(tmp_path):
    environment = Environment(tmp_path / "venv")
    working = environment.python.read_text()
    environment.python.write_text(working + 'case "$*" in *cpu.txt*) exit 1;; esac\n')
    assert environment.make("setup", "ACCELERATOR=cpu").returncode != 0
    environment.python.write_text(working)
    assert environment.make("setup", "ACCELERATOR=cpu").returncode == 0
    assert environment.installs()[-1].endswith("-e .")


def test_only_half_installed_packages_are_installed_again(environment):
    whole = environment.directory / "lib/whole-1.dist-info"
    half = environment.directory / "lib/half-1.dist-info"
    for package in (whole, half):
        package.mkdir(parents=True)
        (package / "METADATA").touch()
    (whole / "INSTALLER").write_text("pip\n")
    environment.make("setup", "ACCELERATOR=cpu")
    assert whole.exists()
    assert not half.exists()


def test_an_old_python_is_refused_in_one_line(environment, tmp_path):
    old = tmp_path / "python3.8"
    code = "import sys; sys.version_info = (3, 8, 1); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$2\"\n")
    old.chmod(0o755)
    result = environment.make("setup", f"PYTHON={old}")
    assert result.returncode != 0
    assert "error: prunecomp needs Python 3.11 or newer" in result.stderr.splitlines()[0]
    assert environment.installs() == []


def test_help_is_the_default_and_lists_the_targets(environment):
    listed = environment.make().stdout
    for target in ("setup", "test", "demo", "results", "lint", "fmt", "check", "clean"):
        assert f"make {target} " in listed


def test_optimum_gets_an_environment_of_its_own(environment):
    result = environment.make("optimum", f"OPTIMUM={environment.directory}", "VENV=elsewhere")
    assert result.returncode == 0, result.stderr
    assert environment.installs() == [
        "--no-deps --no-compile --no-index torch==2.13.0+cpu",
        "--no-deps --no-compile -r constraints/optimum.txt",
    ]
    before = environment.calls_file.read_text()
    environment.make("optimum", f"OPTIMUM={environment.directory}", "VENV=elsewhere")
    assert environment.calls_file.read_text() == before
