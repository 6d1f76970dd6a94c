#!/usr/bin/env bash
# SimCLR + MixCo on CIFAR-10, ResNet-18.
# Settings, cost and what to expect: src/mixco/recipes/cifar10_simclr_mixco.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="cifar10_simclr_mixco"
knn_options=(--k 10 --votes equal)

source "$(dirname "$0")/common.sh"
run_recipe cifar10_simclr_mixco "$@"
