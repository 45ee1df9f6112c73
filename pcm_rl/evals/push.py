"""An exported policy on the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pcm_rl.config import ConfigError
from pcm_rl.evals.card import CARD, HUB_NAME, LIBRARY

_NAMES_BASE = ("base_model_name_or_path", "_name_or_path")
_WEIGHTS = (".safetensors", ".bin", ".pt")


def push_to_hub(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload the folder of an export in one commit, as the user who is logged in at the hub.

    A new repository is private unless ``private`` is false. In an existing one files of the same names are replaced
    (its history keeps them), and others stay. It is refused where it is public and ``private`` is true, where its
    ``README.md`` was not written by pcm_rl, and where it holds weights that the folder does not replace.

    Args:
        folder: As :func:`~pcm_rl.evals.export.export_run` has written it.
        repository: ``OWNER/NAME``.
        private: Whether only the owner may see it.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: The name is none, the repository is refused, or a file names its base by a path of this machine.
        ConnectionError: The hub cannot be reached, or refuses the upload.
        FileNotFoundError: There is no such folder.
        ImportError: If ``huggingface_hub`` is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to push")
    _check_names(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    check_repository(repository, private=private, names=names)
    api = _api()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Policy from pcm_rl"))
    except Exception as error:  # of many kinds, of which some are no OSError
        raise ConnectionError(
            f"pushing to {repository} has failed: {_line(error)}; {folder} is complete: push it again with `hf upload "
            f"{repository} {folder}{' --private' * private}`"
        ) from error


def check_repository(repository: str, *, private: bool = True, names: set[str] | None = None) -> None:
    """What can be refused before anything is exported; see :func:`push_to_hub`.

    Args:
        repository: ``OWNER/NAME``.
        private: Whether only the owner may see it.
        names: Files that will be there; None where these are not known yet.

    Raises:
        ConfigError, ConnectionError, ImportError: As :func:`push_to_hub`.
    """
    if HUB_NAME.fullmatch(repository) is None:
        raise ConfigError(f"--push expects OWNER/NAME, got {repository!r}")
    api = _api()
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        api.whoami()
        try:
            found = api.model_info(repository)
        except RepositoryNotFoundError:
            return
        ours = all(file.rfilename != CARD for file in found.siblings or ()) or _is_ours(api, repository)
    except Exception as error:
        raise ConnectionError(f"the hub does not answer for {repository}: {_line(error)}") from error
    if private and not found.private:
        raise ConfigError(f"{repository} is public on the hub; give --public, or another name")
    if not ours:
        raise ConfigError(f"{repository} has a {CARD} that pcm_rl did not write; give another name")
    there = {file.rfilename for file in found.siblings or () if file.rfilename.endswith(_WEIGHTS)}
    if names is not None and (others := sorted(there - names)):
        raise ConfigError(
            f"{repository} holds other weights, {others[0]}, which would lie beside these; give another name, or "
            "delete them there"
        )


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError("pushing needs huggingface_hub: pip install 'pcm_rl[vla]'") from error
    return HfApi()


def _is_ours(api: Any, repository: str) -> bool:
    from huggingface_hub import ModelCard

    path = api.hf_hub_download(repository, CARD)
    card = ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    return getattr(card.data, "library_name", None) == LIBRARY


def _check_names(folder: Path) -> None:
    """Refuse files that would tell everyone a path of this machine."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for key in _NAMES_BASE:
            named = content.get(key) if isinstance(content, dict) else None
            if isinstance(named, str) and (Path(named).is_absolute() or Path(named).exists()):
                raise ConfigError(
                    f"{path} names the base checkpoint by a path of this machine; export it again with --base-model "
                    "OWNER/NAME"
                )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
