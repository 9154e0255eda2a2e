#!/bin/sh
# Install the course from this folder alone, the first time, and open JupyterLab on your copy of the notebooks.
#   ./start.sh            install if need be, then open JupyterLab
#   ./start.sh install    install only
# Everything goes to $FTKIT_HOME (default: ftkit in your home folder), so this folder may be read-only and shared.
set -eu
cd "$(dirname "$0")"
home=${FTKIT_HOME:-$HOME/ftkit}
python=${PYTHON:-python3}
if [ ! -e "$home/venv/.ready" ]; then
    if ! "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")'; then
        echo "This folder is for Python @PYTHON@: PYTHON=/path/to/python@PYTHON@ $0" >&2
        exit 1
    fi
    "$python" -m venv --clear "$home/venv"
    "$home/venv/bin/python" -m pip install -q --no-index --find-links wheels --require-hashes -r requirements.txt
    touch "$home/venv/.ready"
fi
mkdir -p "$home/notebooks"
for file in notebooks/*; do # never over a learner's own
    [ -e "$home/$file" ] || cp "$file" "$home/$file"
done
[ "${1:-}" = install ] || exec "$home/venv/bin/ftkit" lab "$home/notebooks" "$@"
