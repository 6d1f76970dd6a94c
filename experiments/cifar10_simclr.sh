#!/usr/bin/env bash
# SimCLR on CIFAR-10, ResNet-18.
# Settings, cost and what to expect: src/mixco/recipes/cifar10_simclr.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="cifar10_simclr"
knn_options=(--k 10 --votes equal)

source "$(dirname "$0")/common.sh"
run_recipe cifar10_simclr "$@"
