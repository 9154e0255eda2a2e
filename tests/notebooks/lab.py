"""JupyterLab started as `make lab` starts it, and a headless Chromium that cannot leave this machine."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

from stable import kernel_environment
from tests import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOOPBACK = {"127.0.0.1", "localhost", None}  # None: data: and blob: have no host
CHROMIUM_FLAGS = [
    "--no-sandbox",  # Chromium refuses to run as root, which containers are, without it
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
SETTINGS = {
    # No question about news, which would cover the page.
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell in the page, not only those in view.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
# In the page: the notebook is there, and its kernel has nothing to do.
IDLE = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
    return panel?.context?.isReady && kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""


def find_chromium():
    """The browser's path: FTKIT_CHROMIUM, or the first of BROWSERS on the PATH; None where there is none."""
    return os.environ.get("FTKIT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def lab_command():
    """The `jupyter lab` line of the Makefile, with this environment's jupyter: a list of arguments."""
    (line,) = re.findall(r"^\t@?\$\(BIN\)/(jupyter lab .*)$", (ROOT / "Makefile").read_text(), re.M)
    program, *arguments = re.sub(r"\$\(.*\)", "", line).split()  # make's functions only add --allow-root
    return [str(Path(sys.prefix, "bin", program)), *arguments]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def running_lab(folder):
    """JupyterLab as `make lab` starts it, in `folder`, with private settings: (process, address, token)."""
    private = {}
    for name in (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    ):
        private[name] = str(folder / ".private" / name)
    private["JUPYTERLAB_SETTINGS_DIR"] = str(folder / ".private" / "settings")
    for plugin, values in SETTINGS.items():
        path = Path(private["JUPYTERLAB_SETTINGS_DIR"], f"{plugin}.jupyterlab-settings")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port, log = free_port(), folder / "lab.log"
    extra = [
        "--no-browser",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--expose-app-in-browser",
    ]
    if os.geteuid() == 0:
        extra.append("--allow-root")
    env = {name: value for name, value in kernel_environment().items() if not name.startswith("JUPYTER")}
    with log.open("w") as out:
        process = subprocess.Popen(
            lab_command() + extra,
            cwd=folder,
            env=env | private,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while status_of(f"{address}/api") is None or not (token := re.search(r"\?token=(\w+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield process, address, token[1]
    finally:
        # The whole group, kernels included; an interrupt asks Lab "Are you sure?" only at a terminal.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def status_of(url):
    """The HTTP status of a GET without cookies; None where nobody answers."""
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextlib.contextmanager
def browser_page(chromium):
    """A page of a fresh browser; `page.escaped` lists requests beyond loopback, `page.errors` page errors."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 1000}, service_workers="block")
        page = context.new_page()
        page.escaped, page.errors = [], []

        def gate(route):
            if urlsplit(route.request.url).hostname in LOOPBACK:
                route.continue_()
            else:
                page.escaped.append(route.request.url)
                route.abort()

        context.route("**/*", gate)
        page.on("websocket", lambda ws: urlsplit(ws.url).hostname in LOOPBACK or page.escaped.append(ws.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(180_000)
        yield page
        browser.close()
