#!/usr/bin/env bash
# Mixed Barlow Twins on Tiny-ImageNet at 64 px, ResNet-18.
# Settings, cost and what to expect: src/mixco/recipes/tinyimg64_barlow_mixbt.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="tinyimg64_barlow_mixbt"
knn_options=(--k 200 --temperature 0.5)

source "$(dirname "$0")/common.sh"
run_recipe tinyimg64_barlow_mixbt "$@"
