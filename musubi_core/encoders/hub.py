"""One file from Hugging Face, with an answer in seconds when there is no network."""

from __future__ import annotations

from pathlib import Path

from musubi_core.errors import BadFileError

PATIENCE = 10.0  # seconds to wait for the first answer


def fetch_file(name: str, file: str, *, remedy: str) -> Path:
    """`file` of the repository `name`, from the local Hugging Face cache or else from the network.

    remedy: what the user can do without network, for the message. Raises BadFileError.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    address = hf_hub_url(name, file)
    try:
        return Path(hf_hub_download(name, file, local_files_only=True))
    except (OSError, ValueError):
        pass  # not downloaded yet
    try:
        # The download itself repeats failed connections for half a minute or more; this asks once.
        get_hf_file_metadata(address, timeout=PATIENCE)
        return Path(hf_hub_download(name, file, etag_timeout=PATIENCE))
    except Exception as error:  # noqa: BLE001  its class depends on the HTTP library of the installed version
        reason = str(error).strip().partition("\n")[0]
        raise BadFileError(
            f"{file} of {name} is neither on this computer nor can it be downloaded from Hugging Face "
            f"({type(error).__name__}: {reason}). Download {address} by other means and {remedy}."
        ) from None
