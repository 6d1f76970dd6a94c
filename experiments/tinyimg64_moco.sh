#!/usr/bin/env bash
# MoCo v2 on Tiny-ImageNet at 64 px, ResNet-18.
# Settings, cost and what to expect: src/mixco/recipes/tinyimg64_moco.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="tinyimg64_moco"

source "$(dirname "$0")/common.sh"
run_recipe tinyimg64_moco "$@"
