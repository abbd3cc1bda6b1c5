"""Files on object stores and web servers: listed, read and written, with patience for what passes.

What others may rely on: every function takes whole URLs (s3://, gs://, http(s)://, or of any other file system that
fsspec knows) and may be called from several threads, and in processes that were forked or spawned. Drops, stalls, short
answers and servers in trouble (408, 425, 429, 5xx) are tried again, with growing pauses; a file that is missing or not
for us is one `TransferError` at once, and so is a server that stays in trouble. Nothing else is raised but `UsageError`
for what cannot work here: an unknown protocol, a library that is missing, a disk that takes no more.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from reeltag.core.errors import ReeltagError, TransferError, UsageError

CONNECT_SECONDS, SILENT_SECONDS = 5, 20
CHUNK_BYTES = 8 << 20
TRIES = 8  # in a row without progress
PAUSE_SECONDS, LONGEST_PAUSE = 0.25, 8.0
LATER = (408, 425, 429)  # statuses by which nothing is refused for good

_T = TypeVar("_T")
_VERSIONS = ("ETag", "etag", "generation", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime", "created")
# Of botocore and google.auth, and of what they find wrong before anything is sent.
_NOT_READY = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
_NOT_VALID = ("ParamValidationError", "InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError")
_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for a store that is "
    "not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run `gcloud auth application-default login`",
    "http": "for a file that is not public, use a signed URL",
}
_random = random.SystemRandom()  # none of training's, and another one in a forked process


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL, as it was when it was looked at.

    Attributes:
        url: where it is.
        size: in bytes.
        version: what tells this state of it from others; None where the server names nothing such.
        sha256: of its bytes, where that is known.
    """

    url: str
    size: int
    version: str | None
    sha256: str = ""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(urlsplit(self.url).path).name

    def __str__(self) -> str:
        return self.url


def is_url(name: str) -> bool:
    """Whether a name is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def stat(url: str) -> RemoteFile:
    """A file as it is now.

    Raises:
        TransferError: there is none, it is not for us, or the other side cannot be reached or names no size.
        UsageError: nothing here can read such URLs.
    """
    filesystem, path = file_system(url)
    info = _patiently(url, lambda: filesystem.info(path))
    if info["type"] != "file":
        raise TransferError(f"{url}: is a folder; name a file, or several with a pattern such as '{url}/*'")
    if info["size"] is None:
        raise TransferError(f"{url}: the server does not say how large it is; copy the file and give its path")
    return RemoteFile(url, int(info["size"]), version(info))


def expand(pattern: str) -> list[RemoteFile]:
    """The file behind a URL, or all that match a URL with `*` in it, sorted by name; none is an empty list.

    Behind http(s):// a pattern needs a server that lists its folders.

    Raises:
        TransferError: there is no such file, it is not for us, or the other side cannot be reached.
        UsageError: nothing here can read such URLs.
    """
    if "*" not in pattern:
        return [stat(pattern)]
    filesystem, path = file_system(pattern)
    folder, _, rest = path.partition("*")[0].rpartition("/")
    deep = "/" in path[len(folder) + 1 :]
    found = _patiently(pattern, lambda: _listed(pattern, filesystem, folder, rest, deep))
    matches = re.compile("[^/]*".join(map(re.escape, path.split("*")))).fullmatch
    return _files(filesystem, [info for info in found if matches(info["name"])])


def list_files(prefix: str) -> list[RemoteFile]:
    """All files below a folder's URL, however deep, sorted by name; none is an empty list.

    Raises:
        TransferError: the bucket does not exist or is not for us, or the other side cannot be reached.
        UsageError: nothing here can read such URLs.
    """
    filesystem, path = file_system(prefix)
    folder = path.rstrip("/")
    return _files(filesystem, _patiently(prefix, lambda: _listed(prefix, filesystem, folder, "", True)))


def exists(url: str) -> bool:
    """Whether there is a file behind a URL.

    Raises:
        TransferError: it is not for us, or the other side cannot be reached.
        UsageError: nothing here can read such URLs.
    """
    filesystem, path = file_system(url)
    try:
        return bool(_patiently(url, lambda: filesystem.info(path))["type"] == "file")
    except TransferError as error:
        if error.__cause__ is not None and _is_missing(error.__cause__):
            return False
        raise


def read(url: str) -> bytes:
    """The bytes of a file, which should fit in memory.

    Raises:
        TransferError: it is missing, not for us, changed while it was read, or the other side cannot be reached.
        UsageError: nothing here can read such URLs.
    """
    return b"".join(_chunks(stat(url), 0))


def download(
    url: str,
    target: Path,
    size: int,
    *,
    version: str | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> None:
    """Fetch a file in chunks that are appended to `target`; what is there already is not fetched again.

    So a target that a killed process left goes on where it ended; keep targets of different versions apart.

    Args:
        url: of the file.
        target: where to; in a folder that exists.
        size: of the file, in bytes.
        version: of the file, from `expand` or `stat`.
        advance: told the bytes of each chunk, those that are there already first.

    Raises:
        TransferError: the file is missing, not for us, or not what it was, or the other side stays in trouble.
        UsageError: nothing here can read such URLs, or the target cannot be written.
    """
    file = RemoteFile(url, size, version)
    try:
        with target.open("ab") as out:
            begin = out.tell()
            if begin > size:
                begin = out.truncate(0)
            advance(begin)
            for chunk in _chunks(file, begin):
                out.write(chunk)
                advance(len(chunk))
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error})") from error


def upload(local: Path, url: str) -> None:
    """Put a file behind a URL, whole or not at all; what was there is replaced.

    Raises:
        TransferError: we may not write there, or the other side cannot be reached.
        UsageError: the file cannot be read, or nothing here can write to such URLs.
    """
    if _scheme(url) == "http":
        raise UsageError(f"{url}: web servers are only read; write to s3:// or gs://, or to a folder")
    filesystem, path = file_system(url, inner_tries=TRIES)
    try:
        size = local.stat().st_size
    except OSError as error:
        raise UsageError(f"{local}: cannot be read ({error.strerror})") from error

    def put() -> None:
        filesystem.put_file(str(local), path)
        filesystem.invalidate_cache()
        if (arrived := filesystem.info(path)["size"]) != size:
            raise OSError(errno.EIO, f"{arrived} of {size} bytes arrived")

    # A part of a large file is tried again by s3fs itself: the whole might never pass.
    _patiently(url, put, tries=2)


def file_system(url: str, inner_tries: int = 1) -> tuple[Any, str]:
    """The file system of fsspec behind a URL, which knows nothing of earlier calls, and the path in it.

    Args:
        url: any that fsspec knows.
        inner_tries: how often an S3 client sends a request itself.

    Raises:
        UsageError: nothing here can read such URLs.
    """
    import fsspec

    scheme = _scheme(url)
    try:
        # An instance is kept for each process, so a forked one makes its own.
        filesystem, path = fsspec.url_to_fs(url, **_options(scheme, inner_tries))
    except (ImportError, ValueError) as error:
        what = f"cannot be read here ({describe_error(error)})"
        raise UsageError(f"{url}: {what}; s3:// and gs:// need pip install 'reeltag[cloud]'") from error
    except Exception as error:  # gcsfs looks for credentials at once
        raise refusal_error(url, error) from error
    if scheme == "s3":
        filesystem.retries = 1  # ours are enough
    filesystem.invalidate_cache()
    return filesystem, path


def version(info: Mapping[str, Any]) -> str | None:
    """What tells a state of a file from others, by what a file system says of it; None if nothing does."""
    return next((f"{key} {info[key]}" for key in _VERSIONS if info.get(key)), None)


def is_refusal(error: BaseException) -> bool:
    """Whether the other side answered that there is no such file, or not for us, so that asking again is in vain."""
    status = _status(error)
    if status is not None and not isinstance(error, TimeoutError):  # S3 calls a stalled request 400
        return status < 500 and status not in LATER
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or is_refusal(error.__cause__)  # HTTP's calls every failure a missing file
    name = type(error).__name__
    known = isinstance(error, PermissionError | ValueError | TypeError | NotImplementedError)
    return known or name in (*_NOT_READY, *_NOT_VALID) or str(error).startswith("Forbidden")  # as gcsfs has it


def refusal_error(url: str, error: BaseException) -> TransferError:
    """What to say of an error by which the other side refused something."""
    advice = _ADVICE.get(_scheme(url), "")
    if type(error).__name__ in _NOT_READY:
        return TransferError(f"{url}: there are no credentials ({describe_error(error)}); {advice}")
    if _status(error) == 416:  # it ends before the range
        return _changed(url)
    if _is_missing(error):
        return TransferError(f"{url}: there is no such file or bucket ({describe_error(error)}); check the URL")
    return TransferError(
        f"{url}: refused ({describe_error(error)}); check the URL{f', and {advice}' if advice else ''}"
    )


def describe_error(error: BaseException) -> str:
    """An error in words."""
    cause = error.__cause__ or error
    return ": ".join(filter(None, [type(cause).__name__, " ".join(str(cause).split())]))


def _options(scheme: str, inner_tries: int) -> dict[str, Any]:
    if scheme == "s3":
        # Retrying at three places multiplies: an address that does not answer would take an hour.
        retries = {"total_max_attempts": inner_tries, "mode": "standard"}
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": SILENT_SECONDS}
        return {"config_kwargs": {**timeouts, "retries": retries}}
    if scheme not in ("gs", "http"):
        return {}
    from aiohttp import ClientTimeout

    # aiohttp's default allows five minutes for the whole file, and knows no proxy.
    patience = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    if scheme == "gs":
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # a stack trace for what we say in a line
        return {"requests_timeout": patience, "session_kwargs": {"trust_env": True}}
    headers = {"Accept-Encoding": "identity"}  # ranges are of the file, not of what it is packed into
    return {"client_kwargs": {"timeout": patience, "trust_env": True, "headers": headers}}


def _scheme(url: str) -> str:
    scheme = urlsplit(url).scheme.lower()
    return {"https": "http", "gcs": "gs", "s3a": "s3"}.get(scheme, scheme)


def _listed(url: str, filesystem: Any, folder: str, prefix: str, deep: bool) -> list[Mapping[str, Any]]:
    """What is in a folder, or all in it that begins with a prefix; where `deep`, also in those below."""
    if _scheme(url) in ("s3", "gs"):
        return list(filesystem.find(folder, prefix=prefix, detail=True).values())
    # Here `find` and `glob` would leave out what cannot be listed now.
    listing = filesystem.ls(f"{folder}/", detail=True)
    below = [info["name"].rstrip("/") for info in listing if deep and info["type"] == "directory"]
    return [*listing, *(info for each in below for info in _listed(url, filesystem, each, "", True))]


def _files(filesystem: Any, found: Sequence[Mapping[str, Any]]) -> list[RemoteFile]:
    def look(info: Mapping[str, Any]) -> RemoteFile:
        url = filesystem.unstrip_protocol(info["name"])
        # The page of a web server names files alone.
        return stat(url) if info["size"] is None else RemoteFile(url, int(info["size"]), version(info))

    files = sorted((info for info in found if info["type"] == "file"), key=lambda info: str(info["name"]))
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(look, files))


def _chunks(file: RemoteFile, begin: int) -> Iterator[bytes]:
    """The file from a byte on, in chunks of the length that they should have."""
    filesystem, path = file_system(file.url)

    def fetch() -> bytes:
        end = min(begin + CHUNK_BYTES, file.size)
        content: bytes = filesystem.cat_file(path, start=begin, end=end)
        if len(content) == file.size:  # of a server that knows no ranges
            return content[begin:]
        if len(content) != end - begin:
            _refuse_change(file)
            raise OSError(errno.EIO, f"{len(content):,} bytes came and not {end - begin:,}")
        return content

    while begin < file.size:
        chunk = _patiently(file.url, fetch, f", byte {begin:,}")
        begin += len(chunk)
        yield chunk
    _refuse_change(file)


def _refuse_change(file: RemoteFile) -> None:
    now = stat(file.url)
    if now.size != file.size or (None not in (now.version, file.version) and now.version != file.version):
        raise _changed(file.url)


def _changed(url: str) -> TransferError:
    return TransferError(f"{url}: changed while it was read; run again, and it is read anew")


def _patiently(url: str, action: Callable[[], _T], place: str = "", tries: int | None = None) -> _T:
    """What an action returns, which is repeated while the other side is in trouble."""
    # gcsfs has six tries of its own in each of these.
    tries = tries or (2 if _scheme(url) == "gs" else TRIES)
    for number in range(tries):
        try:
            return action()
        except ReeltagError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            if is_refusal(error):
                raise refusal_error(url, error) from error
            if number == tries - 1:
                what = f"cannot be reached ({describe_error(error)}), {tries} times in a row"
                hint = "check the URL and the network, and run again: what has arrived is kept"
                raise TransferError(f"{url}{place}: {what}; {hint}") from error
        time.sleep(min(PAUSE_SECONDS * 2**number, LONGEST_PAUSE) * _random.uniform(0.5, 1))
    raise AssertionError("there is at least one try")


def _is_missing(error: BaseException) -> bool:
    status = _status(error)
    return status in (404, 410) or (status is None and isinstance(error, FileNotFoundError))


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer that is behind an error, in the words of aiohttp, botocore or gcsfs."""
    for each in filter(None, (error, error.__cause__)):
        response = getattr(each, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(each, "status", None) or vars(each).get("code")  # aiohttp warns of its own `code`
        if str(status).isdigit():
            return int(status)
    return None
