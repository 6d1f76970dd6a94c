#!/usr/bin/env bash
# BYOL + MYOL on CIFAR-100, ResNet-50.
# Settings, cost and what to expect: src/mixco/recipes/cifar100_byol_myol.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="cifar100_byol_myol"
knn_options=(--k 200 --temperature 0.1)

source "$(dirname "$0")/common.sh"
run_recipe cifar100_byol_myol "$@"
