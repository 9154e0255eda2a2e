#!/usr/bin/env bash
# A fine-tune on a RunPod pod, or on each machine of an Instant Cluster:
#
#     bash deploy/runpod/finetune.sh --model MODEL --data chats.jsonl --output /workspace/runs/a --save_every 50
#
# What follows the file's name are flags of `python -m ftkit.finetune`. Put the output on the network volume
# (/workspace): the same line goes on with a run that was cut off. On a cluster, start it on every machine.
set -euo pipefail

gpus="${NUM_TRAINERS:-${RUNPOD_GPU_COUNT:-1}}"
output=run
for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = --output ]; then next=$((i + 1)); output="${!next}"; fi
done
launch=(--nproc-per-node "$gpus" --max-restarts 3 --rdzv-backend c10d --rdzv-id "$output")
if [ "${NUM_NODES:-1}" -gt 1 ]; then
    # The machines of a cluster reach each other by these interfaces, not by the one to the internet.
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ens1}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ens1}"
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    launch+=(--nnodes "$NUM_NODES" --rdzv-endpoint "$PRIMARY_ADDR:$PRIMARY_PORT")
else
    launch+=(--rdzv-endpoint localhost:0)
fi
exec torchrun "${launch[@]}" -m ftkit.finetune "$@"
