# make demo    train and evaluate on images that the program draws itself
# make test    run the tests
# make quick   run the tests that are not marked as slow
# make lint    check style, types and spelling
# make docs    make the site of the documentation in build/site
# make clean   remove the virtual environment and the caches
#
# The virtual environment is made with $(PYTHON), 3.9 or later: make demo PYTHON=python3.11

PYTHON ?= python3
# A small network and small images, so that it learns within minutes on two cores.
DEMO_FLAGS ?= --model=resnet18_v1 --image-size=56 --crop-size=48 --lr=0.001 \
	--epochs=6 --batch-num=80 --steps=4,5 --evaluate-first --save-model-prefix=glyphs
DEMO_PREFIX = $(patsubst --save-model-prefix=%,%,$(filter --save-model-prefix=%,$(DEMO_FLAGS)))

PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
# The build for GPUs has a wheel for this platform alone.
GPU := $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && nvidia-smi >/dev/null 2>&1 && echo -gpu)
REQUIREMENTS := requirements$(GPU)

# Each stamp records a finished step. Their names make another Python, or the arrival of a GPU,
# start from an empty environment.
INSTALLED := .venv/installed-$(REQUIREMENTS)-$(VERSION)
WORKS := .venv/works-$(REQUIREMENTS)-$(VERSION)
TOOLS := .venv/tools-$(REQUIREMENTS)-$(VERSION)
SITE := .venv/site-$(REQUIREMENTS)-$(VERSION)

define CHECK_PYTHON
import sys
found = sys.version_info[:2]
if found < (3, 9):
    sys.exit("Python 3.9 or later is needed, not %d.%d: name one with make PYTHON=..." % found)
if found > (3, 15):
    sys.stderr.write("Python %d.%d is newer than 3.15, the newest that was tried.\n" % found)
from embedding_learning.runtime.mxnet_compat import explain_platform
explanation = explain_platform()
if explanation:
    sys.exit(explanation)
try:
    import ensurepip, venv
except ImportError:
    sys.exit("Python lacks venv: on Debian or Ubuntu, apt-get install python%d.%d-venv" % found)
endef
export CHECK_PYTHON

define NEXT_STEPS

The network is $(DEMO_PREFIX).params. Curves, t-SNE and a gallery of queries are in
$(DEMO_PREFIX).run/report.html.

Next, with your own photographs, one folder per class:
    .venv/bin/python -m embedding_learning check --data-path=PHOTOGRAPHS
    .venv/bin/python train.py --data-path=PHOTOGRAPHS --save-model-prefix=mine
    .venv/bin/python -m embedding_learning search mine PHOTOGRAPHS QUERY.jpg --picture=found.png
docs/data.md says how to list images in other ways, and docs/index.md what else there is.
endef
export NEXT_STEPS

# Each process computes with one thread; more would only wait for each other. Compiled code is kept,
# since the tests start hundreds of processes. The tests of a file run in one process, since they
# share what they have prepared, and the slow files come first.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -q -n auto --maxprocesses 8 \
	--dist loadfile --no-loadscope-reorder

.PHONY: demo test quick lint docs clean

demo: $(WORKS)
	.venv/bin/python train.py --data-path=glyphs $(DEMO_FLAGS)
	.venv/bin/python -m embedding_learning report $(DEMO_PREFIX)
	@echo "$$NEXT_STEPS"

test: $(WORKS) $(TOOLS)
	$(PYTEST)

# Leaves out the tests that start whole runs or several processes, draw pictures, or compute long.
quick: $(WORKS) $(TOOLS)
	$(PYTEST) -m "not slow"

lint: $(TOOLS)
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy embedding_learning
	.venv/bin/python -m codespell_lib

# Without the theme's notice about mkdocs 2, which is not installed.
docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "Open build/site/index.html. The search needs a server: python3 -m http.server -d build/site"

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# MXNet goes in without its dependencies, since it would refuse the numpy of Python 3.13 and later.
$(INSTALLED): requirements-common.txt $(REQUIREMENTS).txt
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv --clear .venv
	$(PIP) -r requirements-common.txt
	$(PIP) --no-deps -r $(REQUIREMENTS).txt
	@touch $@

# Names the system library or the driver that is missing.
$(WORKS): $(INSTALLED)
	@.venv/bin/python -m embedding_learning.runtime.mxnet_compat
	@touch $@

$(TOOLS): $(INSTALLED) requirements-dev.txt requirements-onnx.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

$(SITE): $(INSTALLED) requirements-docs.txt
	$(PIP) -r requirements-docs.txt
	@touch $@
