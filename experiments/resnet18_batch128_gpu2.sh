#!/usr/bin/env bash
# SimCLR on Tiny-ImageNet, ResNet-18 (Kim et al. 2020).
# Settings, cost and what to expect: src/mixco/recipes/resnet18_batch128_gpu2.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="resnet18_batch128_gpu2"

source "$(dirname "$0")/common.sh"
run_recipe resnet18_batch128_gpu2 "$@"
