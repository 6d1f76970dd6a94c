"""`mixco push`: put an encoder on the Hugging Face hub in one commit, with huggingface_hub's client."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mixco.export.formats import HUB_NAME
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say
from mixco.settings.commands import ExportConfig, PushConfig


def push(config: PushConfig) -> str:
    """Push an encoder, exported for the hub unless it is an export already; returns its address.

    The token comes from the environment's HF_TOKEN and is sent to the hub (or HF_ENDPOINT) alone.

    Raises UserError for a missing token or one without rights, for a hub that cannot be reached or
    refuses, for a public repository where a private one was asked for, and where `export` does.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError(
            "HF_TOKEN is not set: make a token with write access at "
            "https://huggingface.co/settings/tokens and put it into this environment variable"
        )
    if config.repo_id.count("/") != 1:
        raise UserError(
            f"the repository must be OWNER/NAME, your name on the hub and the model's, got "
            f"{config.repo_id}"
        )
    if _is_export(config.run):
        if config.license is not None:
            raise UserError(
                f"--license: {config.run} is an export, and its README.md has the licence; change it "
                "there, or push the run"
            )
        return upload(config.run, config.repo_id, private=config.private, token=token)
    from mixco.export.export import export

    with TemporaryDirectory() as temporary:
        settings = ExportConfig(
            config.run, to="hub", out=Path(temporary, "hub"), license=config.license
        )
        return upload(export(settings), config.repo_id, private=config.private, token=token)


def upload(folder: Path, repo_id: str, *, private: bool, token: str) -> str:
    """Push all files of an export, with the repository's name in the card; returns the address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    from mixco.runtime.hub import quiet

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="mixco")
    card = (folder / "README.md").read_text("utf-8").replace(HUB_NAME, repo_id)
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    operations = [
        CommitOperationAdd(name, card.encode() if name == "README.md" else path)
        for name, path in files.items()
        if not name.startswith(".")
    ]
    with _user_errors(repo_id, api.endpoint), quiet():
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UserError(
                f"{repo_id} exists already and is public; make it private on its page, or leave out "
                "--private. Nothing was pushed"
            )
        api.create_commit(repo_id, operations, commit_message="Encoder and card, by mixco push")
    say(f"pushed {', '.join(operation.path_in_repo for operation in operations)}")
    return str(url)


def _is_export(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return "architecture" in config and (path / "model.safetensors").is_file()


@contextmanager
def _user_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into UserErrors, without its own texts, which may contain the request."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except UserError:
        raise
    except HFValidationError:
        raise UserError(
            f"{repo_id}: not a name on the hub; expected OWNER/NAME of letters, digits, - _ and ."
        ) from None
    except Exception as error:  # the client's or its HTTP library's, and wrapped ones
        found: BaseException = error
        while found.__cause__ is not None and not isinstance(found, HfHubHTTPError):
            found = found.__cause__  # uploads wrap it
        status = found.response.status_code if isinstance(found, HfHubHTTPError) else None
        if status == 400 and str(error).startswith("Invalid metadata"):
            reasons = " ".join(str(error).split("\n- ")[1:])
            raise UserError(
                f"{repo_id}: the hub refuses the head of README.md ({reasons}); nothing was pushed"
            ) from None
        text = {
            401: f"{endpoint} does not know the token in HF_TOKEN; make a new one with write access",
            403: f"the token in HF_TOKEN may not write to {repo_id}; give it write access there",
            404: f"{endpoint} does not know {repo_id}, or the token in HF_TOKEN may not see it",
            None: f"{endpoint} cannot be reached ({type(found).__name__}); try again later, or see "
            "to HF_ENDPOINT",
        }.get(status, f"{endpoint} answers with error {status}; try again later")
        raise UserError(text) from None
