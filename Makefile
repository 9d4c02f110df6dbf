# Every target does the set-up it needs; a second run takes about a second. PYTHON=/path/to/python3.x
# chooses the interpreter (3.10 to 3.12). See scripts/setup/setup.sh for what set-up does.

SHELL := /bin/bash
BIN := .venv/bin
WITH_ROS := scripts/with_ros
# An installed ROS 2 brings pytest plugins that current pytest versions reject.
PYTEST := python -m pytest $(foreach plugin,launch_testing launch_ros launch_pytest \
  launch_testing_ros launch_testing_ros_pytest_entrypoint,-p no:$(plugin))

.DEFAULT_GOAL := help
.PHONY: help setup setup-sim setup-test demo sim test lint format typecheck build model models-onnx bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## virtual environment, ROS 2 and the built ros_ws (no torch)
	@scripts/setup/setup.sh demo

setup-sim: ## the same, and MuJoCo for the simulated cell
	@scripts/setup/setup.sh sim

setup-test: ## the same, and what export, training and the tests need (with torch)
	@scripts/setup/setup.sh test

demo: setup ## play the recorded warehouse bag, ask questions, write pictures to out/demo
	@$(WITH_ROS) python -m edge_atp_ros.demo

sim: setup-sim ## a planner moves items in the simulated cell, led by answers; pictures to out/sim
	@$(WITH_ROS) python -m sim.run

test: lint typecheck ## everything CI checks: lint, types, import rules and all tests
	@$(WITH_ROS) $(PYTEST)

lint: setup-test ## ruff, the import rules, the Dockerfiles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint docker/*.Dockerfile; fi

typecheck: setup-test ## mypy, strict on the core and the exporter
	$(BIN)/mypy

format: setup-test ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: ## build ros_ws again, even if nothing changed
	@rm -f .venv/.setup/workspace
	@scripts/setup/setup.sh demo

model: setup-test ## train the default model, scenes to checkpoint, into out/warehouse_tiny (hours; resumes)
	$(BIN)/python -m models.warehouse_tiny.train --stage all --resume

# Name and precision of each as models/warehouse_tiny.yaml lists them; nothing needs calibration data.
models-onnx: setup-test ## export the committed directories of the default model again (a minute)
	$(BIN)/python -m export --model models/warehouse_tiny.yaml --overwrite \
	  --out models/warehouse_tiny/onnx
	$(BIN)/python -m export --model models/warehouse_tiny.yaml --overwrite --precision int8 \
	  --out models/warehouse_tiny/onnx_int8

bench: setup ## time every pruning method's selection (minutes)
	$(BIN)/python -m benchmarks.selection

# Not the whole of out/: a training run there has cost hours.
clean: ## remove what builds, tests and the demo wrote
	rm -rf ros_ws/build ros_ws/install ros_ws/log out/demo out/sim
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find edge_atp export models ros_ws sim launch tests scripts benchmarks \
	  -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and the virtual environment
	rm -rf .venv *.egg-info
