"""Copy the notebooks that are not there yet, and open JupyterLab on the first one: `ftkit lab`.

Lab listens on 127.0.0.1 and asks for its token. On a remote machine, reach it through an SSH tunnel:

    ftkit lab --no-browser --port 8888               on the remote machine; prints the address with the token
    ssh -N -L 8888:127.0.0.1:8888 user@machine       on yours; then open that address in your browser

--ip 0.0.0.0 needs no tunnel, but shows Lab, unencrypted, to everyone who can reach the machine and knows the token.
"""

import argparse
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

from ftkit._arguments import parse

from .copying import FOLDER, copy_notebooks

FIRST = "00_start_here.ipynb"
NEWS = "@jupyterlab/apputils-extension:announcements"  # neither Lab's news nor its update check


def lab_command(folder: Path, ip: str, port: int, browser: bool) -> list[str]:
    """The command line of JupyterLab. Its token stays on."""
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.ip={ip}", f"--ServerApp.port={port}"]
    command += [f"--ServerApp.root_dir={folder.absolute()}", f"--LabApp.default_url=/lab/tree/{FIRST}"]
    command.append("--ServerApp.jpserver_extensions=ftcourse.lab_server=True")  # what it does is said there
    command += [] if browser else ["--ServerApp.open_browser=False"]
    return command + (["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])


def exposure_warning(ip: str, port: int) -> str:
    """What listening on `ip` means where other machines can reach it; empty for this machine's own addresses."""
    try:
        local = ipaddress.ip_address(ip).is_loopback
    except ValueError:  # a name, or Jupyter's "*" and "" for all addresses
        local = ip == "localhost"
    if local:
        return ""
    return (
        f"--ip {ip or repr(ip)}: other machines can reach this Lab. Whoever knows its token can run commands here as "
        f"you, and the\nconnection is not encrypted. Safer: leave --ip out, and on your own machine run\n"
        f"    ssh -N -L {port}:127.0.0.1:{port} user@this-machine"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(FOLDER), help="where the notebooks go (default: %(default)s)"
    )
    parser.add_argument("--ip", default="127.0.0.1", help="address that Lab listens on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8888, help="of Lab (default: %(default)s, or the next free one)")
    parser.add_argument("--no-browser", action="store_true", help="open no browser: print the address only")
    given = parse(parser, arguments)
    try:
        import ipywidgets  # noqa: F401
        import jupyterlab  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'ftkit[lab]'", file=sys.stderr)
        return 2
    try:
        copy_notebooks(given.folder)
    except OSError as error:
        print(f"error: cannot copy to {given.folder}: {error.strerror}: give another folder", file=sys.stderr)
        return 2
    if warning := exposure_warning(given.ip, given.port):
        print(f"warning: {warning}", file=sys.stderr)
    trust = [sys.executable, "-m", "jupyter", "trust", *map(str, given.folder.glob("*.ipynb"))]
    subprocess.run(trust, check=False, capture_output=True)  # else Lab shows no stored pictures
    disable = [sys.executable, "-m", "jupyter", "labextension", "disable", "--level=sys_prefix", NEWS]
    subprocess.run(disable, check=False, capture_output=True)
    return subprocess.call(lab_command(given.folder, given.ip, given.port, not given.no_browser))


if __name__ == "__main__":
    sys.exit(main())
