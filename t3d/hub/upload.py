"""What goes to a repository on the hub: told first, then sent."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id

from t3d.data.download import HTTP_ERROR
from t3d.errors import UserError, cause
from t3d.sdar.checkpoint import CARD, HUB_ID

log = logging.getLogger(__name__)

UNITS = ("B", "kB", "MB", "GB", "TB")
SILENCE_S = 300.0
"""How long a hub may say nothing to a request; its client would wait for ever (before 1.0 for a time of its own)."""


@dataclass(frozen=True)
class Upload:
    """Files for one repository.

    Attributes:
        repository: owner/name.
        kind: model or dataset.
        card: text of its README.md.
        files: name in the repository -> the file, or its content.
        left_out: files of the folder that stay here.
        notes: what was changed on the way, one line each.
    """

    repository: str
    kind: str
    card: str
    files: dict[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def contents(self) -> dict[str, Path | bytes]:
        """All files, the card among them."""
        return {CARD: self.card.encode(), **self.files}

    @property
    def url(self) -> str:
        """Where it goes."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repository}"


def check_repository(name: str) -> str:
    """Returns `name` if a repository can be called so.

    Raises:
        UserError: it cannot.
    """
    expected = "owner/name, as the hub spells repositories"
    if not HUB_ID.fullmatch(name):
        raise UserError("REPO", expected, name)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError("REPO", expected, f"{name} ({error})") from error
    return name


def description(upload: Upload, private: bool) -> str:
    """What would be sent, in words, with the whole card."""
    sizes = {name: _size(content) for name, content in sorted(upload.contents.items())}
    width = max(map(len, sizes))
    return "\n".join(
        [
            f"{upload.kind} {upload.url} ({'private' if private else 'public'}, if it is new)",
            *(f"  {name:{width}}  {_readable(size)}" for name, size in sizes.items()),
            f"  {len(sizes)} files, {_readable(sum(sizes.values()))}",
            *(f"left out: {name}" for name in upload.left_out),
            *upload.notes,
            f"--- {CARD}:",
            upload.card,
        ]
    )


def send(upload: Upload, private: bool, message: str) -> str:
    """Makes the repository if it is missing, and commits all files at once; returns the commit's address.

    Raises:
        UserError: no token; or the hub, or the way to it, refuses.
    """
    if get_token() is None:
        raise UserError(upload.url, "a token that may write (HF_TOKEN, or `hf auth login`)", "none")
    hub_logging.set_verbosity_error()  # the warnings of its retries would come before the one line of the error
    api = HfApi()
    additions = [
        CommitOperationAdd(name, str(one) if isinstance(one, Path) else one) for name, one in upload.contents.items()
    ]
    get_session().timeout = SILENCE_S
    log.info("sending %s files to %s", len(upload.contents), upload.url)
    with _refusals(upload.url):
        api.create_repo(upload.repository, repo_type=upload.kind, private=private or None, exist_ok=True)
        commit = api.create_commit(upload.repository, additions, commit_message=message, repo_type=upload.kind)
    return str(commit.commit_url)


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """Turns what the hub's client raises into one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        expected = {
            401: "a token that the hub knows",
            403: "a token that may write there",
            404: "a repository that this token can see, or an owner under whom it may make one",
        }.get(status or 0, "a hub that takes the files")
        raise UserError(url, expected, f"{status}: {error.server_message or cause(error)}") from error
    except (HTTP_ERROR, OSError, ValueError, RuntimeError) as error:  # a broken line; a card or a file that it refuses
        raise UserError(url, "a hub that can be reached and takes the files", cause(error)) from error


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _readable(size: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    unit = 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 else f"{size:.1f} {UNITS[unit]}"
