#!/bin/bash
# Training on several nodes, one process a GPU, started again by itself until it is done:
#     sbatch examples/slurm/train.sh SHARDS RUN -r RECIPE [SETTINGS]
# Both folders lie on a file system that all nodes see.
#SBATCH --job-name=kilopix
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kilopix-%j.out
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# Slurm sends USR1 five minutes before the time is over: the run finishes its step, saves, and exits with 0.
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec kilopix train "$@"
' kilopix "$@"

# Asked to stop, it is not finished; queue the job again, and the same command goes on.
if [ ! -e "$2/model.safetensors" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
