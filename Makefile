# make train   the main job: GRPO with chunk selection learns pick and place on a CPU
# make test    all tests; ARGS="--numprocesses 4 --dist loadfile" on several cores
# make lint    ruff, strict types, spelling, the Dockerfile
# make figures the documentation's figures and tables, from benchmarks/results
# make gpu     what only a GPU can say: GPU tests, steps, speed and memory of the 7B with random weights
# make mutants, make coverage   which changes of the method no test notices; which lines no test runs
# make reference  the generated parts of the documents
# make docs       the documentation site in build/site, its links checked; make docs-look tries it in a browser
# make setup   what the others need, in the versions of constraints.txt; each of them does it by itself, once
# make lock    constraints.txt again: what is there stays; ARGS=--upgrade takes the newest versions
# make test-newest   all tests with the newest versions, in an environment of their own
# make test-envs     other people's environments, with those that cannot be installed beside LIBERO
# make test-trainers our batches for other trainers with RLinf's and verl's own code
# make test-ray      environments on Ray, in an environment of their own
# make test-lerobot  our data sets with the package lerobot, and its data sets with ours
# make test-loggers  wandb, mlflow and trackio themselves, offline; they lie beside the environment
# make release   sdist and wheel, built, checked and tried on every Python; ARGS=--rehearse at any time
# make licences  THIRD_PARTY_LICENCES.md again
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCKED ?= PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
ARGS ?=

.PHONY: setup lock train test test-newest test-envs test-trainers test-ray test-lerobot test-loggers lint format figures gpu mutants coverage reference docs docs-look release licences clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt scripts/system_packages.sh
	@echo "setup: once; with PyTorch's CUDA build and the simulators it is some GB and takes a few minutes"
	sh scripts/system_packages.sh
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable ".[libero,metaworld,video,vla,pi0,qlora,sb3,lerobot,examples,docs,dev]"
	@touch $@

lock:
	$(PYTHON) scripts/lock.py $(ARGS)

train: $(READY)
	$(BIN)/pcm-rl train --config configs/pick_place.yaml name=pick-place-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

test-newest:
	rm -rf $(VENV)/newest
	$(MAKE) test VENV=$(VENV)/newest LOCKED=

# robosuite 1.5 in place of LIBERO's 1.4, without the old mink and NumPy that it asks for; panda-gym brings PyBullet, which
# has no wheels for every Python
test-envs: $(VENV)/envs/.ready
	MUJOCO_GL=$${MUJOCO_GL:-osmesa} $(VENV)/envs/bin/python -m pytest -m others tests/envs/test_others.py $(ARGS)

$(VENV)/envs/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/envs
	sed "/^robosuite==/d" constraints.txt > $(VENV)/envs/constraints.txt
	PIP_CONSTRAINT=$(VENV)/envs/constraints.txt $(VENV)/envs/bin/python -m pip install --quiet \
		--disable-pip-version-check --editable ".[examples]" pytest pytest-timeout \
		panda-gym==3.0.7 numba scipy Pillow opencv-python pynput termcolor tqdm h5py mujoco mink==0.0.13
	$(VENV)/envs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps robosuite==1.5.2
	@touch $@

# RLinf and verl pin what we cannot have, and of both a few files are enough; Ray, which these import, lies beside them
test-trainers: $(VENV)/trainers/.ready
	PYTHONPATH=$(VENV)/trainers $(BIN)/python -m pytest tests/algos/test_rlinf_batch.py \
		tests/algos/test_simplevla_batch.py tests/examples/test_trainers.py $(ARGS)

$(VENV)/trainers/.ready: $(READY)
	rm -rf $(VENV)/trainers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/trainers "ray>=2.60"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/trainers --no-deps \
		rlinf==0.3.0 verl==0.9.1
	@touch $@

test-ray: $(VENV)/ray/.ready
	$(VENV)/ray/bin/python -m pytest tests/envs/test_ray.py $(ARGS)

$(VENV)/ray/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)/ray
	$(LOCKED) $(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[ray]" \
		pytest pytest-timeout
	@touch $@

# lerobot pins an older PyTorch than ours, but its data sets need a few of its packages only; these lie beside ours
test-lerobot: $(VENV)/lerobot/.ready
	HF_HUB_OFFLINE=1 HF_HOME=$(abspath $(VENV)/lerobot/cache) PYTHONPATH=$(abspath $(VENV)/lerobot) $(BIN)/python -m pytest \
		tests/rollouts/test_lerobot.py tests/rollouts/test_lerobot_foreign.py tests/rollouts/test_lerobot_package.py $(ARGS)

$(VENV)/lerobot/.ready: $(READY)
	rm -rf $(VENV)/lerobot
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/lerobot "datasets>=4,<5" \
		"pandas<3" "numpy<2.3" "av<16" "deepdiff<9" draccus==0.10.0 jsonlines einops pyserial
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/lerobot --no-deps lerobot==0.4.4 \
		"torchvision==$$($(BIN)/python -c 'import torch; print(f"0.{int(torch.__version__.split(chr(46))[1]) + 15}.*")')"
	@touch $@

# mlflow asks for older versions of some packages than ours, so all of it lies beside the environment
test-loggers: $(VENV)/loggers/.ready
	TRACKIO_DIR=$(abspath $(VENV)/loggers/trackio) PYTHONPATH=$(abspath $(VENV)/loggers) $(BIN)/python -m pytest tests/reports/test_loggers.py $(ARGS)

$(VENV)/loggers/.ready: $(READY)
	rm -rf $(VENV)/loggers
	sed -E "/^(pyarrow|pillow|importlib.metadata|python-dateutil)==/d" constraints.txt > $(VENV)/loggers.txt
	PIP_CONSTRAINT=$(VENV)/loggers.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--target $(VENV)/loggers wandb==0.31.0 mlflow==3.17.2 trackio==0.43.0
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: $(READY)
	$(BIN)/python benchmarks/figures.py
	$(BIN)/python benchmarks/tables.py

gpu: $(READY)
	PYTHON=$(BIN)/python bash benchmarks/gpu_day.sh

mutants: $(READY)
	$(BIN)/python -m pip install --quiet mutmut
	OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run $(ARGS)
	$(BIN)/python -m mutmut results

coverage: $(READY)
	$(BIN)/python -m pip install --quiet coverage
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage report

reference: $(READY)
	$(BIN)/python scripts/reference.py

docs: $(READY)
	$(BIN)/python scripts/site_pages.py
	$(BIN)/python scripts/served.py build/site $(BIN)/linkchecker --config scripts/linkcheckerrc

docs-look: docs
	$(BIN)/python -m pip install --quiet playwright axe-playwright-python
	$(BIN)/python scripts/site_look.py

release: $(VENV)/release/.ready
	$(VENV)/release/bin/python scripts/release.py $(ARGS)

licences: $(VENV)/release/.ready
	$(VENV)/release/bin/python scripts/licences.py

$(VENV)/release/.ready:
	$(PYTHON) -m venv $(VENV)/release
	$(VENV)/release/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24" "build>=1.2" \
		"twine>=6.1" "check-wheel-contents>=0.6.2"
	@touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
