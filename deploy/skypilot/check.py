"""Let SkyPilot itself read the files of this folder: no account is needed, and nothing is started.

    python3 -m venv /tmp/sky && /tmp/sky/bin/pip install skypilot
    /tmp/sky/bin/python deploy/skypilot/check.py

In an environment of its own, because SkyPilot wants other versions of what ftkit installs.
"""

import sys
from pathlib import Path

import jsonschema
import sky
import yaml
from sky.utils import schemas

HERE = Path(__file__).resolve().parent
TASKS = {"finetune.yaml": 4, "spot.yaml": 1}  # file -> machines


def main() -> int:
    """Print what SkyPilot makes of each file. Raises its own errors for one that it refuses."""
    given = [("BUCKET", "a-bucket"), ("MODEL", "m"), ("DATA", "d")]
    for name, machines in TASKS.items():
        task = sky.Task.from_yaml_config(yaml.safe_load((HERE / name).read_text()), env_overrides=given)
        if task.num_nodes != machines:
            raise SystemExit(f"{name}: {task.num_nodes} machines, expected {machines}")
        mounts = {path: f"{store.name}, {store.mode.value}" for path, store in task.storage_mounts.items()}
        print(f"{name}: {machines} x {task.resources}, mounts {mounts or task.volumes}")
    jsonschema.validate(yaml.safe_load((HERE / "volume.yaml").read_text()), schemas.get_volume_schema())
    print("volume.yaml: valid")
    return 0


if __name__ == "__main__":
    sys.exit(main())
