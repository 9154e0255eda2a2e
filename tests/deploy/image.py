"""The image of deploy/runpod without Docker: its Dockerfile's steps, carried out on an overlay of this machine's root.

What the steps write goes to a folder, the upper layer, and this machine stays as it is. Each step and the start script
run in namespaces of their own; without `network` they see a loopback device only. It stands for the base image that
this machine has a python3.11 on its PATH, and it cannot show what the base's own files would do.
"""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests import ROOT

DOCKERFILE = ROOT / "deploy/runpod/Dockerfile"
KEPT = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE", "HTTPS_PROXY", "SSL_CERT_FILE")


def allowed() -> bool:
    """Whether this machine lets a process have namespaces and an overlay."""
    script = 'mkdir -p "$0/u" "$0/w" "$0/r" && mount -t overlay o -o lowerdir=/,upperdir="$0/u",workdir="$0/w" "$0/r"'
    folder = Path("/tmp") / f"overlay-{os.getpid()}"
    done = subprocess.run(["unshare", "-mnp", "--fork", "sh", "-c", script, str(folder)], capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    return done.returncode == 0


def instructions(dockerfile: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile, continuations joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


@dataclass
class Image:
    """The upper layer in `folder`, and the environment that the steps so far have set."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        keep = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.env = {"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8", **keep, **self.env}

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    def run(self, script: str, network: bool = False, timeout: float = 900, **env: str) -> subprocess.CompletedProcess:
        """Run a bash script in the image, as root, in namespaces that end with it."""
        layers = f"lowerdir=/,upperdir={self.upper},workdir={self.folder}/work"
        root = shlex.quote(str(self.folder / "root"))
        enter = f"""set -e
            {"" if network else "ip link set lo up"}
            mount -t overlay overlay -o {shlex.quote(layers)} {root}
            mount -t proc proc {root}/proc; mount --rbind /dev {root}/dev
            exec chroot {root} bash -o pipefail -c {shlex.quote("cd /; " + script)}"""
        command = ["unshare", "-mp" if network else "-mnp", "--fork", "--kill-child", "bash", "-c", enter]
        return subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=timeout)

    def expand(self, text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda name: self.env.get(name[1], ""), text)

    def step(self, instruction: str, rest: str) -> None:
        """Carry out one instruction. Raises ValueError for one that is not known here, or that fails."""
        if instruction == "ENV":
            for word in shlex.split(rest):
                name, _, value = word.partition("=")
                self.env[name] = self.expand(value)
        elif instruction == "ARG":
            name, _, value = rest.partition("=")
            self.env.setdefault(name, value.strip('"'))
        elif instruction == "COPY":
            self.copy(*(word for word in rest.split() if not word.startswith("--")))
        elif instruction == "RUN":
            done = self.run(rest, network=True, timeout=3600)  # downloads, and pip on a busy machine
            if done.returncode:
                raise ValueError(f"RUN {rest}: {done.stderr[-2000:]}")
        elif instruction not in ("FROM", "SHELL", "EXPOSE"):
            raise ValueError(f"{instruction} is not known here: add it to Image.step")

    def copy(self, source: str, target: str) -> None:
        """COPY, from what .dockerignore lets in."""
        goal = self.upper / target.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        if source != ".":
            shutil.copy(ROOT / source, goal)
            goal.chmod(0o755)
            return
        left_out = DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines()
        ignored = shutil.ignore_patterns(*(name.removeprefix("**/") for name in left_out if name.startswith("**/")))
        for path in ROOT.iterdir():
            if path.name in left_out:
                continue
            if path.is_dir():
                shutil.copytree(path, goal / path.name, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(path, goal / path.name)


def build(folder: Path, **arguments: str) -> Image:
    """The image that the Dockerfile makes with these build arguments."""
    image = Image(folder, dict(arguments))
    for instruction, rest in instructions():
        image.step(instruction, rest)
    return image
