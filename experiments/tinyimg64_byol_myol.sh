#!/usr/bin/env bash
# BYOL + MYOL on Tiny-ImageNet at 64 px, ResNet-50.
# Settings, cost and what to expect: src/mixco/recipes/tinyimg64_byol_myol.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="tinyimg64_byol_myol"

source "$(dirname "$0")/common.sh"
run_recipe tinyimg64_byol_myol "$@"
