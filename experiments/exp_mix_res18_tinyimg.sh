#!/usr/bin/env bash
# MoCo v2 + MixCo on Tiny-ImageNet, ResNet-18 (Kim et al. 2020).
# Settings, cost and what to expect: src/mixco/recipes/exp_mix_res18_tinyimg.toml; what can be set: common.sh.
set -euo pipefail

data_path="[your_data_path]"
exp_name="exp_mix_res18_tinyimg"

source "$(dirname "$0")/common.sh"
run_recipe exp_mix_res18_tinyimg "$@"
