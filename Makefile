# Two commands are enough on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKSPACE ?= .cosmos

.PHONY: demo test check unit images test-docker test-cluster bench compile clean help campaigns campaign-resume campaign-demo campaign-kills campaign-fuzz

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(READY) ## Run both pipelines on a real clip with tiny models (VIDEOS=… for your own)
	@$(BIN)/cosmos-pipelines demo --workspace $(WORKSPACE) $(if $(VIDEOS),--videos $(VIDEOS))

test: check unit ## Everything: static checks, then the tests

check: $(READY) ## ruff, mypy, and that the compiled pipelines are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy components pipelines tests
	$(BIN)/cosmos-pipelines compile --check

unit: $(READY) ## The tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile -m "not docker and not cluster" $(PYTEST)

images: ## Build the container images (BUILD_ARGS=… for another base)
	images/build

test-docker: $(READY) ## Images built and run; both pipelines in containers (needs a Docker daemon)
	COSMOS_TEST_DOCKER=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -s --timeout 3600 tests/images $(PYTEST)

test-cluster: $(READY) ## Launching, rights and training on a Kubernetes cluster (needs KUBECONFIG)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --timeout 1500 tests/cluster $(PYTEST)

bench: $(READY) ## Side-by-side measurements, one row per comparison
	$(BIN)/python -m tests.benchmarks

campaigns: campaign-fuzz campaign-kills campaign-resume campaign-demo ## The long forms of the tests, hours

CAMPAIGN := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -q --timeout 14400

campaign-resume: $(READY) ## Training interrupted 20 times (kill -9, SIGTERM, lost machine)
	COSMOS_RESUME_CAMPAIGN=20 $(CAMPAIGN) tests/lib/train/checkpoint/test_resume.py

campaign-demo: $(READY) ## make demo killed 12 times at random
	COSMOS_DEMO_KILLS=12 $(CAMPAIGN) tests/demo -k killed

campaign-kills: $(READY) ## Every data stage killed 20 times; 100,000 objects; a 2-hour video
	COSMOS_KILLS=20 COSMOS_FETCH_KILLS=20 COSMOS_OBJECTS=100000 COSMOS_VIDEO_HOURS=2 \
		$(CAMPAIGN) tests/checkpoint_fetch tests/video_discovery tests/tar_sharding \
		tests/prompt_embedding tests/latent_encoding tests/lib/video

campaign-fuzz: $(READY) ## 2,000 mutated videos
	$(BIN)/python -m tests.lib.video.fuzz --full

compile: $(READY) ## Write pipelines/compiled/*.yaml
	$(BIN)/cosmos-pipelines compile

# torch first: with it installed nothing else asks for another build of it.
$(READY): requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements/lock.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/lock.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

clean: ## Remove the environment, the workspace and caches
	rm -rf $(VENV) $(WORKSPACE) .mypy_cache .ruff_cache .pytest_cache .hypothesis
