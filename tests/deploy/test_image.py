"""The image, built without Docker and started as RunPod starts it: `make deploy`, which takes minutes."""

import json
import os
import shlex
from pathlib import Path

import nbformat
import pytest

import build
from tests.deploy import image as images
from tests.deploy.test_runpod_start import FIRST, ROOT
from tests.notebooks.anatomy import verdicts

pytestmark = pytest.mark.deploy

# RunPod's start script as far as JupyterLab is concerned: the hook runs first, and Lab only where there is a password,
# which is its token. FTKIT_RUNPOD_START names their own script, which then takes its place.
START = """\
[ -f /pre_start.sh ] && bash /pre_start.sh
if [ -n "$JUPYTER_PASSWORD" ]; then
    cd / && python -m jupyter lab --allow-root --no-browser --port=8888 --ip=* \
        --IdentityProvider.token="$JUPYTER_PASSWORD" --ServerApp.preferred_dir=/workspace >/jupyter.log 2>&1 &
fi
sleep infinity
"""
# What a visitor of the pod gets: prints one line of JSON. With a password Lab is waited for; without, the hook's last
# line, and 2 seconds more, after which a start script would have begun to start Lab. On a busy machine the hook takes
# half a minute and Lab a minute.
VISIT = """\
import glob, json, os, pathlib, time, urllib.error, urllib.request

def visit(path):
    try:
        with urllib.request.urlopen("http://127.0.0.1:8888" + path, timeout=60) as page:
            return page.status, page.url.partition("?")[0].partition(":8888")[2], page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, "", ""
    except OSError:
        return 0, "", ""

password = os.environ["JUPYTER_PASSWORD"]
log = pathlib.Path("/start.log")
deadline = time.monotonic() + 300
while not (visit("/api")[0] if password else "JUPYTER_PASSWORD" in log.read_text()) and time.monotonic() < deadline:
    time.sleep(0.2)
time.sleep(0 if password else 2)
found = {name: visit("/api/kernelspecs" + query)[0]
         for name, query in {"without": "", "wrong": "?token=guess", "with": "?token=" + password}.items()}
if found["with"] == 200:
    found["opens"] = visit("/?token=" + password)[1]
    kernels = json.loads(visit("/api/kernelspecs?token=" + password)[2])["kernelspecs"]
    found["kernels"] = {name: kernel["spec"]["argv"][0] for name, kernel in kernels.items()}
running = [pathlib.Path(path).read_bytes().split(bytes(1)) for path in glob.glob("/proc/[0-9]*/cmdline")]
found["lab runs"] = any(word.endswith((b"jupyter", b"jupyter-lab")) for words in running for word in words)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if not images.allowed():
        pytest.skip("namespaces and overlays need root, and a machine that allows them")
    made = images.build(tmp_path_factory.mktemp("image"), MORE_PACKAGES="")
    theirs = os.environ.get("FTKIT_RUNPOD_START")
    (made.upper / "start.sh").write_text(Path(theirs).read_text() if theirs else START)
    service = made.upper / "opt/ftkit/bin/service"  # the base's: nginx and SSH
    service.write_text("#!/bin/sh\necho service $*\n")
    service.chmod(0o755)
    return made


def start(image, password):
    """Start the pod; (what a visitor gets, the log of the start script)."""
    script = f": >/start.log; setsid bash /start.sh >>/start.log 2>&1 & python -c {shlex.quote(VISIT)}"
    done = image.run(script, timeout=540, JUPYTER_PASSWORD=password)
    log = (image.upper / "start.log").read_text()
    assert done.returncode == 0, done.stderr + log
    return json.loads(done.stdout.splitlines()[-1]), log


def test_lab_opens_on_the_course_for_who_has_the_password_and_for_nobody_else(image):
    seen, log = start(image, "s3cret")
    assert (seen["with"], seen["without"], seen["wrong"]) == (200, 403, 403), log
    assert seen["lab runs"]
    assert seen["opens"] == f"/lab/tree/workspace/ftkit-notebooks/{FIRST}"
    assert "python3" in seen["kernels"] and seen["kernels"]["ftkit"] == "/opt/ftkit/bin/python"
    assert "s3cret" not in log


def test_without_a_password_lab_does_not_start_and_a_learners_work_is_kept(image):
    course = image.upper / "workspace/ftkit-notebooks"
    course.mkdir(parents=True, exist_ok=True)
    (course / FIRST).write_text("my work")
    seen, log = start(image, "")
    assert (seen["with"], seen["without"]) == (0, 0) and "JUPYTER_PASSWORD is not set" in log
    assert not seen["lab runs"]
    assert (course / FIRST).read_text() == "my work" and (course / "16_fsdp_fine_tune.ipynb").exists()


def test_its_commands_are_the_installed_ones_with_the_pinned_versions(image):
    done = image.run(
        "cd /workspace && command -v ftkit torchrun && pip freeze && python -c 'import ftkit; print(ftkit.__file__)'"
    )
    lines = done.stdout.split()
    assert lines[:2] == ["/opt/ftkit/bin/ftkit", "/opt/ftkit/bin/torchrun"]
    assert lines[-1].startswith("/opt/ftkit/lib/")
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for name in ("torch", "transformers", "jupyterlab", "ipywidgets"):
        assert any(line.partition("+")[0] == f"{name}=={pins[name]}" for line in lines), name


def test_an_exercise_is_solved_in_it_without_a_network(image):
    """The first notebook with its solutions, as a learner would leave it, run by the image's kernel."""
    solved = build.solve(build.read_source(ROOT / "notebooks/source/01_gradient_masks.py"))
    folder = image.upper / "workspace/ftkit-notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(solved, folder / "solved.ipynb")
    done = image.run("cd /workspace/ftkit-notebooks && jupyter execute --inplace solved.ipynb", timeout=300)
    assert done.returncode == 0, done.stderr
    ran = nbformat.read(folder / "solved.ipynb", 4)
    exercises = [cell for cell in ran.cells if "exercise" in cell.metadata.get("tags", [])]
    assert exercises and all(verdicts(cell) == ["Right"] for cell in exercises)


def test_the_launch_script_finds_what_the_image_has(image):
    flags = "--output /workspace/run --max_steps 2 --batch_size 4"
    done = image.run(f"cd /workspace && bash /opt/ftkit-source/deploy/runpod/finetune.sh {flags}", RUNPOD_GPU_COUNT="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "installing" not in done.stderr and (image.upper / "workspace/run/model/config.json").exists()
