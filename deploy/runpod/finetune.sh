#!/usr/bin/env bash
# A fine-tune on a RunPod pod, or on each machine of an Instant Cluster:
#
#     bash deploy/runpod/finetune.sh --model MODEL --data chats.jsonl --output /workspace/runs/a --save_every 50
#     bash deploy/runpod/finetune.sh /workspace/run.yaml
#
# What follows the file's name are flags of `ftkit finetune`, or its YAML file. Put the output on the network volume
# (/workspace): the same line continues a run that was cut off. On a cluster, start it on every machine.
#
# Where ftkit is not installed, as in RunPod's own images, it is installed from this checkout, with the versions of
# constraints.txt, into FTKIT_VENV: a folder on the pod's own disk, since machines that share a volume would write over
# each other's installation.
set -euo pipefail

source="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
venv="${FTKIT_VENV:-$HOME/.ftkit-venv}"
if [ -x "$venv/bin/torchrun" ]; then PATH="$venv/bin:$PATH"; fi

# In a folder without an `ftkit` of its own: only an installed one counts.
if ! (cd / && python3 -c 'import importlib.util as find; assert find.find_spec("ftkit")') 2>/dev/null; then
    python=""
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: ftkit needs Python 3.11 or newer: apt-get install python3.11-venv" >&2
        exit 2
    fi
    echo "ftkit is not installed: installing it into $venv" >&2
    "$python" -m venv "$venv"
    "$venv/bin/pip" install -q -c "$source/constraints.txt" "$source"
    PATH="$venv/bin:$PATH"
fi

# The output folder names the run, however it was given: the same command is then the same run, and continues.
output="$(python3 - "$@" <<'END'
import argparse, sys
import yaml

arguments = sys.argv[1:]
if len(arguments) == 1 and arguments[0].endswith((".yaml", ".yml")):
    with open(arguments[0]) as file:
        print(yaml.safe_load(file)["output"])
else:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output", default="")
    print(parser.parse_known_args(arguments)[0].output)
END
)" || { echo "error: cannot read the key output of $*" >&2; exit 2; }
if [ -z "$output" ]; then
    echo "error: give --output, or a YAML file with the key output" >&2
    exit 2
fi

gpus="${NUM_TRAINERS:-${RUNPOD_GPU_COUNT:-1}}"
launch=(--nproc-per-node "$gpus" --max-restarts 3 --rdzv-backend c10d --rdzv-id "$output")
if [ "${NUM_NODES:-1}" -gt 1 ]; then
    # The machines of a cluster reach each other by these interfaces, not by the one to the internet.
    export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ens1}" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ens1}"
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    # Rank 0 keeps the rendezvous. Told so, torchrun need not recognise the address as its own, which may fail in a
    # container.
    is_host=$([ "$NODE_RANK" -eq 0 ] && echo true || echo false)
    launch+=(--nnodes "$NUM_NODES" --rdzv-endpoint "$PRIMARY_ADDR:$PRIMARY_PORT" --rdzv-conf "is_host=$is_host")
else
    launch+=(--rdzv-endpoint localhost:0)
fi
exec torchrun "${launch[@]}" -m ftkit.finetune "$@"
