# Two commands do everything, set-up included: `make repro` and `make test`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

repro: .venv/ready  ## run the pipeline, whatever changed since the last run, and say what it found
	.venv/bin/dvc repro
	.venv/bin/python -m commands.result

lint: .venv/dev  ## check style, format and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

check: lint  ## and run the fast tests: about three minutes
	.venv/bin/python -m pytest -m fast

test: lint  ## and run all tests but the slow ones
	.venv/bin/python -m pytest -m "not slow"

test-all: test  ## and the slow ones
	.venv/bin/python -m pytest -m slow

workshop: .venv/ready  ## tune SmolLM2-135M-Instruct on conversations, as the experiment `workshop`, and say what it found
	.venv/bin/dvc exp run --name workshop -S model=smollm2-135m -S dataset=workshop -S train.learning_rate=1e-3 \
		-S train.epochs=2 -S train.evaluations=2 -S generate.answer_tokens=48
	.venv/bin/python -m commands.result

brief: .venv/ready  ## run the reference recipe: Llama-3.2-1B on WikiText-2, from the Hugging Face Hub
	.venv/bin/dvc exp run --name brief -S model=llama-3.2-1b -S dataset=wikitext-2
	.venv/bin/python -m commands.result

deps: .venv/ready  ## write into dvc.yaml which files of code each stage runs
	.venv/bin/python -m commands.deps

rate: .venv/ready  ## rate both models' texts in the browser, and count what was said
	.venv/bin/dvc repro sheet
	.venv/bin/python -m commands.ratings
	.venv/bin/dvc repro

# Of 300 columns, the parameters that differ and four metrics of the tuned model.
SHOWN := (Experiment|Created|State|model|dataset|also)$$|(params\.yaml:)?(quantization|prepare|lora|train|evaluate|generate)\.
SHOWN := $(SHOWN)|(metrics/compare\.json:)?base_to_tuned\.perplexity_ratio$$
SHOWN := $(SHOWN)|metrics/evaluate/tuned\.json:document\.(perplexity|accuracy|bits_per_byte)$$

experiments: .venv/ready  ## show the experiments: what each changed, and how good its tuned model is
	.venv/bin/dvc exp show --md --only-changed --drop '^(?!$(SHOWN))'

best: .venv/ready  ## name the best experiment, and tell whether it is better than HEAD beyond chance
	.venv/bin/python -m commands.best

reproduce: .venv/ready  ## run a commit's pipeline again, apart, and compare: make reproduce REV=main
	.venv/bin/python -m commands.reproduce $(REV)

release: .venv/ready  ## merge the adapter into 16-bit weights, in models/release/, with a model card
	.venv/bin/dvc repro
	.venv/bin/python -m commands.release

agreement: .venv/dev .venv/lm-eval/ready  ## compare the scores with those of lm-evaluation-harness, and run tasks of it
	.venv/lm-eval/bin/python -m pytest tests/test_lm_eval.py

tasks: .venv/lm-eval/ready  ## compare base, tuned and released model on tasks: make tasks TASKS="hellaswag arc_easy"
	.venv/bin/dvc repro
	.venv/lm-eval/bin/python -m commands.tasks $(TASKS)

.venv/lm-eval/ready: .venv/ready  # the harness, installed apart, beside what is installed here
	.venv/bin/python -m venv .venv/lm-eval
	echo "import site; site.addsitedir('$$(.venv/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')')" \
		> .venv/lm-eval/$$(cd .venv/lm-eval && echo lib/python3*/site-packages)/pipeline.pth
	.venv/lm-eval/bin/pip install lm_eval==0.4.13
	touch $@

.venv/ready: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install -r requirements.txt
	.venv/bin/python -m commands.plots_page
	touch $@

.venv/dev: .venv/ready requirements-dev.txt
	.venv/bin/pip install -r requirements-dev.txt
	touch $@

.PHONY: repro workshop brief lint check test test-all deps rate experiments best reproduce release agreement tasks
