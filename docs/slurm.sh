#!/usr/bin/env bash
# Pretraining on several nodes under SLURM: sbatch docs/slurm.sh [options of mixco pretrain]
# One launcher a node (srun), one process a GPU (torchrun). When its time is up, the run is saved and queued
# again, and resumes. Submitting it again by hand with the same options resumes it too. Activate the
# environment with mixco before you submit, and keep the run folder where the first node finds it again.
#SBATCH --job-name=mixco
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

# Processes on each node; without GPUs, one.
processes=${SLURM_GPUS_ON_NODE:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_ON_NODE / processes))}

# Each start of the group gets its own store. Otherwise a restart may find addresses of dead processes.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# SLURM warns this shell (B:) two minutes before the end. Then every process finishes its step, the first one
# saves, and the job is queued again.
stopped=no
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$processes" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
  -m mixco pretrain "$@" &
step=$!
code=0
wait "$step" || code=$?
if [ "$stopped" = yes ]; then
  wait "$step" || true # the signal ended the first wait early
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
