# Two commands do everything, set-up included: `make repro` and `make test`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

repro: .venv/ready  ## run the pipeline: whatever changed since the last run
	.venv/bin/dvc repro

test: .venv/ready  ## check the style and run all tests
	.venv/bin/ruff check .
	.venv/bin/python -m pytest

.venv/ready: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install -r requirements.txt
	touch $@

.PHONY: repro test
