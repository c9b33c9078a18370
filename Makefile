# Two commands do all the set-up: `make serve` and `make test`. Settings are GRIDLOOP_* variables (see docs/settings.md).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help serve test conformance bench soak ray lint dist sbom pins clean

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

serve: $(VENV)/.serve   ## install what serving needs and start the service
	$(BIN)/gridloop serve

test: $(VENV)/.dev      ## install what development needs; lint, type-check and test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

conformance: $(VENV)/.dev   ## check that the server is one of the Open Inference Protocol, and print the table
	$(BIN)/python -m tests.conformance

bench: $(VENV)/.serve   ## compare with plain FastAPI and with no HTTP at all on this machine (under six minutes)
	$(BIN)/python benchmarks/bench.py

SECONDS ?= 900
soak: $(VENV)/.dev      ## mixed traffic for 15 minutes (SECONDS=60: one), workers killed meanwhile; fails when anything grows or is lost
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS)

ray: $(VENV)/.ray       ## test the service on a Ray node (an environment of its own, 1.2 GB; under two minutes)
	$(VENV)/ray/bin/python -m pytest tests/test_ray.py

lint: $(VENV)/.dev      ## rewrite the code the way ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.serve    ## build the wheels of the service and of the small models, and the source archive, into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	cd deploy/gridloop-models && $(abspath $(BIN))/python -m hatchling build -t wheel -d $(abspath dist)

sbom: $(VENV)/.sbom     ## write the bill of materials of what serving installs (CycloneDX) and its licences into dist/
	mkdir -p dist
	$(VENV)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.cdx.json $(VENV)/serving/bin/python
	$(BIN)/python deploy/licences.py dist/sbom.cdx.json > dist/licences.md

# An environment of nothing but the pins of serving, and one of the tool that reads it.
$(VENV)/.sbom: requirements.txt requirements-sbom.txt $(VENV)/.serve
	$(PYTHON) -m venv --clear --without-pip $(VENV)/serving
	$(BIN)/python -m pip --python $(VENV)/serving/bin/python install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(PYTHON) -m venv --clear --without-pip $(VENV)/sbom
	$(BIN)/python -m pip --python $(VENV)/sbom/bin/python install --quiet --disable-pip-version-check --require-hashes -r requirements-sbom.txt
	touch $@

# A stamp per set of pins: an unchanged requirements file installs nothing again.
$(VENV)/.serve: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@

$(VENV)/.ray: requirements-ray.txt $(VENV)/.serve
	$(PYTHON) -m venv $(VENV)/ray
	$(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-ray.txt
	$(VENV)/ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

pins:            ## rewrite the hashed pins from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group build pyproject.toml -o requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group build --group dev --group deploy pyproject.toml -o requirements-dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group build --group dev --extra ray pyproject.toml -o requirements-ray.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group sbom -o requirements-sbom.txt

clean:           ## remove what the other commands made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
