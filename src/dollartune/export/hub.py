"""Opt-in push of an exported directory to a model hub."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from dollartune.errors import UserError
from dollartune.export.peft_format import EXTRA
from dollartune.methods.stored_adapter import CONFIG
from dollartune.untrusted_files import PICKLES, read_json

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""How the hub writes licences (apache-2.0, llama3.1, openrail++); it refuses an upload whose card names one otherwise."""


def push(folder: Path, repository: str, private: bool = True, client: Any = None) -> str:
    """Uploads a directory as a model repository; nothing is ever uploaded unless this is called.

    Args:
        folder: an exported directory with its card.
        repository: `owner/name`.
        private: whether a new repository is private.
        client: a `huggingface_hub.HfApi`, or anything with its `create_repo` and `upload_folder`.

    Returns:
        The address of the upload.

    Raises:
        UserError: there is no card or one that the hub would refuse, a pickle or hashes of training rows lie in the folder, or
            the hub refuses or cannot be reached.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"repository {repository!r} is not understood; write owner/name.")
    if not (folder / "README.md").is_file():
        raise UserError(
            f"{str(folder)!r} has no README.md, the model card.", hint="dollartune export ADAPTER --out DIR"
        )
    if pickles := [path.name for path in folder.rglob("*") if path.suffix in PICKLES]:
        raise UserError(f"{str(folder)!r} holds {', '.join(pickles[:3])}; pickles are not uploaded.")
    for name in (CONFIG, EXTRA):
        if (folder / name).is_file() and read_json(folder / name).get("rows_seen"):
            raise UserError(
                f"{folder / name} holds hashes of the rows that it was tuned on, from which short rows can be guessed; they are "
                "not uploaded.",
                hint=f"dollartune export ADAPTER --out DIR --push {repository} leaves them out.",
            )
    check_card(folder / "README.md")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    client = client or HfApi()
    try:
        client.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        address = client.upload_folder(
            repo_id=repository, folder_path=str(folder), repo_type="model", commit_message="Tuned with DollarTune"
        )
    # What the hub answers is an OSError or ValueError. Where no answer comes, the error is the HTTP library's own, and since
    # huggingface_hub 1.0 none of these.
    except (OSError, ValueError, HTTPError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(error, HfHubHTTPError):
            again = shlex.join(["hf", "upload", repository, str(folder), ".", *(["--private"] if private else [])])
            raise UserError(f"the hub cannot be reached: {first}; {str(folder)!r} is whole.", hint=again) from None
        raise UserError(f"the hub refused the upload to {repository!r}: {first}", hint="hf auth login") from None
    return str(address)


def check_card(card: Path) -> None:
    """Whether a card says what the hub and a stranger need, before a repository is made.

    Raises:
        UserError: metadata that is no YAML, no licence or none of the hub's, or a base model that is no name of the hub.
    """
    _, _, rest = card.read_text(encoding="utf8").partition("---\n")
    front, ends, _ = rest.partition("\n---\n")
    try:
        data = yaml.safe_load(front) if ends else None
    except yaml.YAMLError as error:
        raise UserError(f"the metadata of {card} is no YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{card} has no metadata between lines of `---`.", hint="dollartune export ADAPTER --out DIR")
    if not data.get("base_model"):
        raise UserError(
            "the card names no base model: the adapter knows its backbone as a folder, which nobody else has.",
            hint="dollartune export ADAPTER --out DIR --base-model OWNER/NAME",
        )
    if not data.get("license"):
        raise UserError(
            "the card has no licence, and nobody may use what has none.",
            hint="dollartune export ADAPTER --out DIR --license apache-2.0",
        )
    if not _LICENSE.fullmatch(str(data["license"])):
        raise UserError(
            f"the card's licence {data['license']!r} is no name of the hub's, which are lower case and without spaces, such as "
            "apache-2.0, mit, cc-by-4.0 or other.",
            hint="dollartune export ADAPTER --out DIR --license apache-2.0",
        )
