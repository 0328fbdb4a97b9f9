"""An exported folder, sent to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopcoder.errors import InputError, Unreachable, counted
from loopcoder.storage.files import in_words


def check_name(repository: str) -> None:
    """Raise InputError unless a repository of the Hub may be called so; nobody is asked."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        why = "a repository is OWNER/NAME, of letters, digits, -, _ and ."
        raise InputError.of(f"hub={repository}", why, "hub=OWNER/NAME") from error


def upload(folder: Path, names: Sequence[str], repository: str, *, dry_run: bool) -> str:
    """Upload files of a folder; return what was done, or would be, for the user.

    Args:
        names: Of the files; whatever else lies in the folder stays here.
        repository: OWNER/NAME; made, private, if it is not there.
        dry_run: Upload nothing, and ask nobody.

    Raises:
        InputError: there is no token, or the Hub refuses it.
        Unreachable: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    # of whichever HTTP library huggingface_hub has
    ours = ("builtins", HfHubHTTPError.__module__)
    kinds: Any = HfHubHTTPError.__mro__
    of_http = (kind for kind in kinds if kind.__module__ not in ours)
    unreachable: tuple[type[Exception], ...] = (*of_http, ConnectionError, TimeoutError)
    files = sorted(folder / name for name in names)
    size = in_words(sum(path.stat().st_size for path in files))
    if dry_run:
        lines = [f"  {path.name}  {in_words(path.stat().st_size)}" for path in files]
        head = f"{counted(len(files), 'file')} ({size}) would be uploaded to {repository}:"
        return "\n".join([head, *lines])
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=[*names])
    except OfflineModeIsEnabled as error:
        raise InputError.of(
            f"hub={repository}: HF_HUB_OFFLINE is set",
            "nothing can be uploaded then",
            "dry_run=true, or unset HF_HUB_OFFLINE",
        ) from error
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise InputError.of(
            f"hub={repository}: {str(error).splitlines()[0]}",
            "the Hub refuses the upload",
            "hf auth login with a token that may write there, or another name",
        ) from error
    except unreachable as error:
        raise Unreachable.of(
            f"hub={repository}: {error}",
            "the Hub cannot be reached from here",
            f"the same command where there is internet; {folder} is whole",
        ) from error
    return f"{counted(len(files), 'file')} ({size}) are at {done.commit_url}"
