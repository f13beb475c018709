#!/usr/bin/env bash
# Train on a Slurm cluster, one process per GPU.
#
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [REQUEUE=1] \
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
#
# PORT (default 29500) must differ between runs that share a node.
# REQUEUE=1 submits a batch job. GRACE seconds (default 120) before its time limit it saves a checkpoint, is queued again
# and continues from there. SBATCH_ARGS are further options of sbatch, e.g. --time=4:00:00.
set -euo pipefail

if [ $# -lt 4 ]; then
  echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]" >&2
  exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
TOOLS=${SWINV2_MM_TOOLS:-$(cd "$(dirname "$0")" && pwd)}

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
export MASTER_PORT="${PORT:-29500}"
RESOURCES=(
  --partition="$PARTITION"
  --job-name="$JOB_NAME"
  --gres="gpu:$GPUS_PER_NODE"
  --ntasks="$GPUS"
  --ntasks-per-node="$GPUS_PER_NODE"
  --cpus-per-task="${CPUS_PER_TASK:-5}"
)
TRAIN=("${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "${@:5}")

if [ -z "${REQUEUE:-}" ]; then
  # SRUN_ARGS and SBATCH_ARGS hold several words on purpose.
  # shellcheck disable=SC2086
  exec srun "${RESOURCES[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${TRAIN[@]}"
fi
if [ -z "${SWINV2_MM_TOOLS:-}" ]; then
  export SWINV2_MM_TOOLS="$TOOLS" # sbatch runs a copy of this script
  # shellcheck disable=SC2086
  exec sbatch "${RESOURCES[@]}" --requeue --open-mode=append --signal="B:USR1@${GRACE:-120}" ${SBATCH_ARGS:-} \
    "$TOOLS/slurm_train.sh" "$@"
fi

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  TRAIN+=(--resume)
fi
STOPPED=
# shellcheck disable=SC2086
srun --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${TRAIN[@]}" &
SRUN=$!
trap 'STOPPED=1; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1 # to the processes, not to this script
CODE=0
wait "$SRUN" || CODE=$?
while kill -0 "$SRUN" 2>/dev/null; do # the signal ended the wait
  CODE=0
  wait "$SRUN" || CODE=$?
done
if [ -n "$STOPPED" ] && [ "$CODE" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$CODE"
