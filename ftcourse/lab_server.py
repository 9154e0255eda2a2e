"""What the course asks of the Jupyter server that shows its notebooks, as a server extension.

`ftkit lab` and `make lab` switch it on for their server alone, with `--ServerApp.jpserver_extensions`. It keeps a
notebook's file as it is when somebody only opens the notebook, and lists notebooks without what they are built from.
"""

SOURCES = ["source", "build.py", "conftest.py", "hosted.py", "ledger.py", "stable.py"]  # beside a checkout's notebooks
FOR_ASSISTANTS = ["AGENTS.md"]


def keep_metadata(model: dict, **_) -> None:
    """Take out what JupyterLab writes into the metadata of each Python notebook that it opens.

    It replaces the notebook's kernel and language by those of the running kernel, down to Python's patch version, and
    saves. The names stay, and are all that it needs.
    """
    if model["type"] != "notebook" or model.get("content") is None:
        return
    metadata = model["content"]["metadata"]
    if metadata.get("kernelspec", {}).get("name") != "python3":
        return
    metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def adapt(contents_manager) -> None:
    """Let a contents manager keep notebooks' metadata and leave out what notebooks are built from."""
    contents_manager.register_pre_save_hook(keep_metadata)
    contents_manager.hide_globs = [*contents_manager.hide_globs, *SOURCES, *FOR_ASSISTANTS]


def _load_jupyter_server_extension(server) -> None:
    # Once all extensions are loaded: some, such as jupytext's, put another contents manager in the first one's place.
    server.io_loop.add_callback(lambda: adapt(server.contents_manager))
