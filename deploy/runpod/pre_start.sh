#!/usr/bin/env bash
# RunPod's start script runs this before it starts JupyterLab. It copies the notebooks to the volume: those that are not
# there yet, and never over a file that is. Whatever fails is said and left: were this to fail, the pod would end, and
# nobody could log in to see why.
set -uo pipefail

workspace="${FTKIT_WORKSPACE:-${RP_WORKSPACE:-/workspace}}"
course="$workspace/ftkit-notebooks"
first="$course/00_start_here.ipynb"

say() { echo "ftkit: $*"; }

prepare() {
    mkdir -p "$workspace/.cache" && ftkit notebooks "$course" || return
    jupyter trust "$course"/*.ipynb >/dev/null ||
        say "not every notebook could be marked as trusted: JupyterLab shows its stored pictures once it has run" >&2
    if [ -z "${JUPYTER_PASSWORD:-}" ]; then return; fi
    # Where Lab opens: the start script roots it at /. A setting that is there already stays.
    config="${JUPYTER_CONFIG_DIR:-$HOME/.jupyter}/jupyter_lab_config.json"
    if [ ! -e "$config" ]; then
        mkdir -p "$(dirname "$config")" &&
            printf '{"LabApp": {"default_url": "/lab/tree%s"}}\n' "$first" >"$config"
    fi
}

if prepare; then
    say "the course is in $course"
else
    say "error: $course is not complete: look at the lines above and at the space left, then run" \
        "\`ftkit notebooks $course\` in a terminal" >&2
fi

if [ -n "${JUPYTER_PASSWORD:-}" ]; then
    say "JupyterLab starts on port 8888 and asks for JUPYTER_PASSWORD"
else
    say "JUPYTER_PASSWORD is not set, so JupyterLab does not start: set it in the pod's environment variables, or over" \
        "SSH run \`ftkit lab $course --no-browser\` and reach it through a tunnel"
fi
exit 0
