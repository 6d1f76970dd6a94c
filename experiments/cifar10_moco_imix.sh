#!/usr/bin/env bash
# MoCo + i-Mix on CIFAR-10, ResNet-50.
# Settings, cost and what to expect: src/mixco/recipes/cifar10_moco_imix.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="cifar10_moco_imix"
knn_options=(--k 200 --temperature 0.1)

source "$(dirname "$0")/common.sh"
run_recipe cifar10_moco_imix "$@"
