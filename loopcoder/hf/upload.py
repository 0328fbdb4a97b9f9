"""An exported folder, sent to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from loopcoder.errors import InputError, Unreachable, counted
from loopcoder.storage.files import in_words


def upload(folder: Path, repository: str, *, dry_run: bool) -> str:
    """Upload a folder; return what was done, or would be, for the user.

    Args:
        repository: OWNER/NAME; made, private, if it is not there.
        dry_run: Upload nothing, and ask nobody.

    Raises:
        InputError: the name is wrong, or the Hub refuses it.
        Unreachable: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        why = "a repository is OWNER/NAME, of letters, digits, -, _ and ."
        raise InputError.of(f"hub={repository}", why, "hub=OWNER/NAME") from error
    files = sorted(path for path in folder.iterdir() if path.is_file())
    size = in_words(sum(path.stat().st_size for path in files))
    if dry_run:
        lines = [f"  {path.name}  {in_words(path.stat().st_size)}" for path in files]
        head = f"{counted(len(files), 'file')} ({size}) would be uploaded to {repository}:"
        return "\n".join([head, *lines])
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder)
    except OfflineModeIsEnabled as error:
        raise InputError.of(
            f"hub={repository}: HF_HUB_OFFLINE is set",
            "nothing can be uploaded then",
            "dry_run=true, or unset HF_HUB_OFFLINE",
        ) from error
    except HfHubHTTPError as error:
        raise InputError.of(
            f"hub={repository}: {str(error).splitlines()[0]}",
            "the Hub refuses the upload",
            "hf auth login with a token that may write there, or another name",
        ) from error
    except Exception as error:  # of whichever HTTP library huggingface_hub has
        raise Unreachable.of(
            f"hub={repository}: {error}",
            "the Hub cannot be reached from here",
            f"the same command where there is internet; {folder} is whole",
        ) from error
    return f"{counted(len(files), 'file')} ({size}) are at {done.commit_url}"
