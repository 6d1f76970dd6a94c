#!/usr/bin/env bash
# SimCLR + MixCo on Tiny-ImageNet, ResNet-18 (Kim et al. 2020).
# Settings, cost and what to expect: src/mixco/recipes/resnet18_batch128_gpu2_mix.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="resnet18_batch128_gpu2_mix"

source "$(dirname "$0")/common.sh"
run_recipe resnet18_batch128_gpu2_mix "$@"
