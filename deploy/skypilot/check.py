"""Let SkyPilot itself read the files of this folder: no account is needed, and nothing is started.

    python3 -m venv /tmp/sky && /tmp/sky/bin/pip install skypilot
    /tmp/sky/bin/python deploy/skypilot/check.py

In an environment of its own, because SkyPilot wants other versions of what ftkit installs.
"""

import sys
from pathlib import Path

import sky

HERE = Path(__file__).resolve().parent
TASKS = {"finetune.yaml": 4, "spot.yaml": 1}  # file -> machines


def main() -> int:
    for name, machines in TASKS.items():
        task = sky.Task.from_yaml(str(HERE / name), env_overrides=[("BUCKET", "a-bucket"), ("MODEL", "m"), ("DATA", "d")])
        if task.num_nodes != machines:
            raise SystemExit(f"{name}: {task.num_nodes} machines, expected {machines}")
        print(f"{name}: {task.num_nodes} machines, {task.resources}, mounts {task.storage_mounts or task.volumes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
