# Two commands do everything, set-up included: `make repro` and `make test`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

repro: settle  ## run the pipeline, whatever changed since the last run, and say what it found
	.venv/bin/python -m commands.result

settle: .venv/ready  ## only bring the results up to date, in the middle of a merge or rebase too
	.venv/bin/python -m commands.settle

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

# What the reference recipe says, set whatever params.yaml says.
RECIPE := quantization.bits=4 quantization.kind=nf4 lora.r=8 lora.alpha=32 lora.dropout=0.05
RECIPE += 'lora.target_modules=[q_proj,k_proj,v_proj,o_proj]' train.epochs=3 train.batch_size=4 train.block_tokens=512
RECIPE += train.learning_rate=2e-4 train.gradient_checkpointing=auto train.evaluations=6

define experiment  # its name, a model and a dataset; one of that name is made anew, from DVC's cache where nothing changed
	.venv/bin/dvc exp remove --quiet $(1) 2> /dev/null || true
	.venv/bin/dvc exp run --name $(1) $(addprefix -S ,model=$(2) dataset=$(3) $(RECIPE))
	.venv/bin/python -m commands.result
endef

brief: .venv/ready  ## run the reference recipe: Llama-3.2-1B on WikiText-2, from the Hugging Face Hub
	$(call experiment,brief,llama-3.2-1b,wikitext-2)

encyclopedia: .venv/ready  ## run its settings on 144 short articles and a small model that is here: MODEL=smollm2-135m
	$(call experiment,encyclopedia,$(or $(MODEL),wiki-mini),encyclopedia)

chat: .venv/ready  ## talk to both models, side by side
	.venv/bin/python -m commands.chat

deps: .venv/ready  ## write into dvc.yaml which files of code each stage runs
	.venv/bin/python -m commands.deps

rate: .venv/ready  ## rate both models' texts in the browser, and count what was said
	.venv/bin/python -m commands.settle sheet
	.venv/bin/python -m commands.ratings
	.venv/bin/python -m commands.settle

experiments: .venv/ready  ## list the experiments of all commits: what each changed, and how good its tuned model is
	.venv/bin/python -m commands.experiments

diff: .venv/ready  ## show what an experiment changed, and whether it is better than HEAD, or than another: make diff REV=r16
	.venv/bin/python -m commands.diff $(REV)

best: .venv/ready  ## name the best experiment, and tell whether it is better than HEAD beyond chance
	.venv/bin/python -m commands.best

reproduce: .venv/ready  ## run a commit's pipeline again, apart, and compare: make reproduce REV=main
	.venv/bin/python -m commands.reproduce $(REV)

release: settle  ## merge the adapter into 16-bit weights, in models/release/, with a model card
	.venv/bin/python -m commands.release

publish: .venv/ready  ## put the adapter on the Hugging Face Hub: make publish REPO=owner/name; FOLDER=models/release PUBLIC=1
	.venv/bin/python -m commands.publish "$(REPO)" $(FOLDER) $(if $(PUBLIC),--public)

export: .venv/export settle  ## write it as GGUF for llama.cpp and Ollama, each file proven: make export TYPES="F16 Q8_0 Q4_0"
	.venv/bin/python -m commands.export $(if $(TYPES),--types $(TYPES))

agreement: .venv/dev .venv/lm-eval/ready  ## compare the scores with those of lm-evaluation-harness, and run tasks of it
	.venv/lm-eval/bin/python -m pytest tests/test_lm_eval.py

tasks: .venv/lm-eval/ready settle  ## compare base, tuned and released model on tasks: make tasks TASKS="hellaswag arc_easy"
	.venv/lm-eval/bin/python -m commands.tasks $(TASKS)

.venv/lm-eval/ready: .venv/ready  # the harness, installed apart, beside what is installed here
	.venv/bin/python -m venv .venv/lm-eval
	echo "import site; site.addsitedir('$$(.venv/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')')" \
		> .venv/lm-eval/$$(cd .venv/lm-eval && echo lib/python3*/site-packages)/pipeline.pth
	.venv/lm-eval/bin/pip install lm_eval==0.4.13
	touch $@

.venv/ready: requirements.txt
	python3 -m venv .venv || python3 -m pip --python .venv/bin/python install pip  # Colab lacks ensurepip
	.venv/bin/pip install -r requirements.txt
	touch $@

.venv/export: .venv/ready requirements-export.txt
	.venv/bin/pip install -r requirements-export.txt
	touch $@

.venv/dev: .venv/ready requirements-dev.txt requirements-export.txt
	.venv/bin/pip install -r requirements-dev.txt
	touch $@

.PHONY: repro settle brief encyclopedia chat lint check test test-all deps rate experiments diff best reproduce release publish export agreement tasks
