#!/usr/bin/env bash
# Train with several processes on one or more machines: one per GPU, or PROCESSES on a CPU (gloo).
#
#   tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
#
# Several machines: run it on each, with NNODES, NODE_RANK and MASTER_ADDR set.
# PORT (default 29500) must differ between runs that share a machine.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG PROCESSES [options of tools/train.py]" >&2
  exit 2
fi
CONFIG=$1
PROCESSES=$2
TOOLS=$(cd "$(dirname "$0")" && pwd)

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
exec "${PYTHON:-python}" -m swinv2_mm.engine.processes \
  --nnodes="${NNODES:-1}" \
  --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" \
  --master_port="${PORT:-29500}" \
  --nproc_per_node="$PROCESSES" \
  "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
