# Sourced by the scripts beside it: pretrain by a recipe, evaluate, add the results to one file.
#
# Environment variables, all optional but DATA_PATH:
#   DATA_PATH     the folder that the data set lies in, if not written into the script
#   EXP_NAME      what the run is called
#   RUNS          where run folders go (runs)
#   RESULTS       the file that the results are added to (results/results.json)
#   SEED DEVICE PRECISION CACHE LOADING WORKERS    of all commands
#   EPOCHS SIZE BATCH_SIZE                     of pretraining, to shorten it for a trial
#   LINEAR_EPOCHS LINEAR_LR LINEAR_BATCH_SIZE  of the linear evaluation
#   MIXCO         the command (mixco)
# Arguments of the script go to `mixco pretrain`.

set -euo pipefail

data_path="${DATA_PATH:-$data_path}"
exp_name="${EXP_NAME:-$exp_name}"
run="${RUNS:-runs}/$exp_name"
results="${RESULTS:-results/results.json}"
read -r -a mixco <<< "${MIXCO:-mixco}"

if [ "$data_path" = "[your_data_path]" ]; then
    echo "$0: write the folder of the data into data_path, or give it as DATA_PATH" >&2
    exit 2
fi

# option --name "$VALUE": both, or nothing where the value is empty
option() {
    if [ -n "$2" ]; then
        arguments+=("$1" "$2")
    fi
}

# begin VERB: the options that all commands share
begin() {
    arguments=("$1")
    option --seed "${SEED:-}"
    option --device "${DEVICE:-}"
    option --precision "${PRECISION:-}"
    option --cache "${CACHE:-}"
    option --loading "${LOADING:-}"
    option --workers "${WORKERS:-}"
}

# run_recipe NAME [options of mixco pretrain]; knn_options may hold those of mixco knn
run_recipe() {
    local recipe="$1"
    shift

    begin pretrain
    option --epochs "${EPOCHS:-}"
    option --size "${SIZE:-}"
    option --batch-size "${BATCH_SIZE:-}"
    "${mixco[@]}" "${arguments[@]}" --recipe "$recipe" --data-path "$data_path" --out "$run" "$@"

    begin knn
    "${mixco[@]}" "${arguments[@]}" --run "$run" ${knn_options[@]+"${knn_options[@]}"}

    begin linear
    option --epochs "${LINEAR_EPOCHS:-}"
    option --lr "${LINEAR_LR:-}"
    option --batch-size "${LINEAR_BATCH_SIZE:-}"
    "${mixco[@]}" "${arguments[@]}" --run "$run" --protocol paper

    "${mixco[@]}" report "$run" --name "$exp_name" --collect "$results" --table
}
