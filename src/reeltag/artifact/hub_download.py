"""Download a model from the Hugging Face Hub by its name there."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.remote_files import LATER

SHARED_FILE, CONFIG, CARD = "model.safetensors", "config.json", "README.md"  # of a folder for the Hub
_NAME = re.compile(r"[\w.-]+/[\w.-]+")

logger = logging.getLogger(__name__)


def is_hub_name(given: str | Path) -> bool:
    """Return True for user/name, unless a folder `user` is here or the text is the name of a file."""
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        return False
    return not given.endswith(".reeltag") and not Path(given).parent.exists()


def download_from_hub(name: str, revision: str | None = None) -> Path:
    """Download a model from the Hugging Face Hub into the Hub's own cache.

    Args:
        name: user/name on the Hub.
        revision: branch, tag or commit.

    Returns:
        The folder in the cache.

    Raises:
        UsageError: there is no such model, or the Hub cannot be reached and the model is not in its cache.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name}: no such folder; give one that `reeltag share` wrote, or user/name on the Hub")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        what = "no such folder, and the Hugging Face Hub needs its library"
        raise UsageError(f"{name}: {what}; {install_command('hub')}") from error
    unreachable = None
    try:
        hub.model_info(name, revision=revision)  # since a download falls back on its cache silently
    except Exception as error:  # the class depends on the Hub's HTTP library
        if isinstance(error, ValueError) or (_status(error) < 500 and _status(error) not in LATER):
            what = f"no such folder here, and no such model on the Hugging Face Hub ({_first_line(error)})"
            raise UsageError(f"{name}: {what}; check name, revision and, for a private one, HF_TOKEN") from error
        unreachable = error
    try:
        folder = hub.snapshot_download(
            name,
            revision=revision,
            local_files_only=unreachable is not None,
            allow_patterns=[SHARED_FILE, CONFIG, CARD],
        )
    except Exception as error:
        if unreachable is None:
            raise UsageError(f"{name}: was not downloaded completely ({_first_line(error)}); try again") from error
        what = (
            f"the Hugging Face Hub cannot be reached ({_first_line(unreachable)}), and its cache has no complete copy"
        )
        raise UsageError(f"{name}: {what}; check the network and HF_HUB_OFFLINE") from error
    if unreachable is not None:
        what = f"the Hugging Face Hub cannot be reached ({_first_line(unreachable)}); using the copy in its cache"
        logger.warning("%s: %s, %s", name, what, folder)
    return Path(folder)


def _status(error: Exception) -> int:
    """Return the HTTP status of an error; 599, a network failure, if there was no response."""
    return int(getattr(getattr(error, "response", None), "status_code", 599))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
