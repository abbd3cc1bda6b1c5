"""List, read and write files on object stores and web servers, with retries for temporary failures.

Every function takes absolute URLs (s3://, gs://, http(s)://, or of any other file system that fsspec knows) and may be
called from several threads, and in forked or spawned processes. Dropped or stalled connections, short responses and
temporary server errors (408, 425, 429, 5xx) are retried with growing pauses. A missing or inaccessible file raises
`TransferError` at once, and a server that keeps failing does so after the last retry. The only other exception is
`UsageError`, for what cannot work here: an unknown protocol, a missing library, a full disk.
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

from reeltag.core.environment import install_command
from reeltag.core.errors import ReeltagError, TransferError, UsageError

CONNECT_SECONDS, SILENT_SECONDS = 5, 20
CHUNK_BYTES = 8 << 20
TRIES = 8  # in a row without progress
PAUSE_SECONDS, LONGEST_PAUSE = 0.25, 8.0
LATER = (408, 425, 429)  # HTTP statuses of temporary failures

_T = TypeVar("_T")
_VERSIONS = ("ETag", "etag", "generation", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime", "created")
# Exceptions of botocore and google.auth without credentials, and of invalid requests before anything is sent.
_NOT_READY = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
_NOT_VALID = ("ParamValidationError", "InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError")
_ADVICE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and AWS_ENDPOINT_URL for a store that is "
    "not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run `gcloud auth application-default login`",
    "http": "for a file that is not public, use a signed URL",
}
_random = random.SystemRandom()  # independent of training's generators, and different in every forked process


@dataclass(frozen=True)
class RemoteFile:
    """A remote file in the state in which it was last inspected.

    Attributes:
        url: of the file.
        size: in bytes.
        version: identifies this state of the file; None if the server reports none.
        sha256: of its bytes, empty if unknown.
    """

    url: str
    size: int
    version: str | None
    sha256: str = ""

    @property
    def name(self) -> str:
        """Last part of the URL's path."""
        return PurePosixPath(urlsplit(self.url).path).name

    def __str__(self) -> str:
        return self.url


def is_url(name: str) -> bool:
    """Return True if a name is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None


def stat(url: str) -> RemoteFile:
    """Return a remote file in its current state.

    Raises:
        TransferError: the file is missing or not accessible, or the server cannot be reached or reports no size.
        UsageError: no installed library reads such URLs.
    """
    filesystem, path = file_system(url)
    info = _with_retries(url, lambda: filesystem.info(path))
    if info["type"] != "file":
        raise TransferError(f"{url}: is a folder; name a file, or several with a pattern such as '{url}/*'")
    if info["size"] is None:
        raise TransferError(f"{url}: the server does not say how large it is; copy the file and give its path")
    return RemoteFile(url, int(info["size"]), version(info))


def expand(pattern: str) -> list[RemoteFile]:
    """Return the file behind a URL, or all files that match a URL with `*`, sorted by name; empty if none match.

    Behind http(s):// a pattern needs a server that lists its folders.

    Raises:
        TransferError: the file is missing or not accessible, or the server cannot be reached.
        UsageError: no installed library reads such URLs.
    """
    if "*" not in pattern:
        return [stat(pattern)]
    filesystem, path = file_system(pattern)
    folder, _, rest = path.partition("*")[0].rpartition("/")
    deep = "/" in path[len(folder) + 1 :]
    found = _with_retries(pattern, lambda: _listed(pattern, filesystem, folder, rest, deep))
    matches = re.compile("[^/]*".join(map(re.escape, path.split("*")))).fullmatch
    return _files(filesystem, [info for info in found if matches(info["name"])])


def list_files(prefix: str) -> list[RemoteFile]:
    """Return all files below a folder's URL, at any depth, sorted by name; empty if there are none.

    Raises:
        TransferError: the bucket does not exist or is not for us, or the other side cannot be reached.
        UsageError: no installed library reads such URLs.
    """
    filesystem, path = file_system(prefix)
    folder = path.rstrip("/")
    return _files(filesystem, _with_retries(prefix, lambda: _listed(prefix, filesystem, folder, "", True)))


def exists(url: str) -> bool:
    """Return True if there is a file behind a URL.

    Raises:
        TransferError: the file is not accessible, or the server cannot be reached.
        UsageError: no installed library reads such URLs.
    """
    filesystem, path = file_system(url)
    try:
        return bool(_with_retries(url, lambda: filesystem.info(path))["type"] == "file")
    except TransferError as error:
        if error.__cause__ is not None and _is_missing(error.__cause__):
            return False
        raise


def read(url: str) -> bytes:
    """Return the bytes of a remote file, which should fit in memory.

    Raises:
        TransferError: the file is missing, not accessible or changed while it was read, or the server is unreachable.
        UsageError: no installed library reads such URLs.
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
    """Download a file in chunks that are appended to `target`; bytes that `target` already holds are not fetched again.

    So a download that was killed resumes where it stopped. Use different targets for different versions of a file.

    Args:
        url: of the file.
        target: local path, in an existing folder.
        size: of the file, in bytes.
        version: of the file, from `expand` or `stat`.
        advance: called with the bytes of each chunk; the first call counts those that `target` already holds.

    Raises:
        TransferError: the file is missing, not accessible or has changed, or the server keeps failing.
        UsageError: no installed library reads such URLs, or the target cannot be written.
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
    """Upload a file atomically; an existing remote file is replaced.

    Raises:
        TransferError: writing there is not permitted, or the server cannot be reached.
        UsageError: the file cannot be read, or no installed library writes to such URLs.
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

    # s3fs retries each part of a large file itself, as retrying all of it might never succeed.
    _with_retries(url, put, tries=2)


def remove(url: str) -> None:
    """Remove a remote file; one that is missing already is fine.

    Raises:
        TransferError: removing there is not permitted, or the server cannot be reached.
        UsageError: no installed library writes to such URLs.
    """
    if exists(url):
        filesystem, path = file_system(url)
        _with_retries(url, lambda: filesystem.rm_file(path))


def file_system(url: str, inner_tries: int = 1) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, with its listing cache cleared, and the path within it.

    Args:
        url: any that fsspec knows.
        inner_tries: attempts that an S3 client makes itself for each request.

    Raises:
        UsageError: no installed library reads such URLs.
    """
    import fsspec

    scheme = _scheme(url)
    try:
        # fsspec caches instances by process, so a forked process creates its own.
        filesystem, path = fsspec.url_to_fs(url, **_options(scheme, inner_tries))
    except (ImportError, ValueError) as error:
        what = f"cannot be read here ({describe_error(error)})"
        raise UsageError(f"{url}: {what}; s3:// and gs:// need {install_command('cloud')}") from error
    except Exception as error:  # gcsfs looks for credentials when it is created
        raise refusal_error(url, error) from error
    if scheme == "s3":
        filesystem.retries = 1  # `_with_retries` retries
    filesystem.invalidate_cache()
    return filesystem, path


def version(info: Mapping[str, Any]) -> str | None:
    """Return what identifies a file's state in a file system's description of it; None if nothing does."""
    return next((f"{key} {info[key]}" for key in _VERSIONS if info.get(key)), None)


def is_refusal(error: BaseException) -> bool:
    """Return True if an error is permanent, such as a missing or forbidden file, so that retrying is useless."""
    status = _status(error)
    if status is not None and not isinstance(error, TimeoutError):  # S3 calls a stalled request 400
        return status < 500 and status not in LATER
    if isinstance(error, FileNotFoundError):
        return error.__cause__ is None or is_refusal(error.__cause__)  # HTTP's calls every failure a missing file
    name = type(error).__name__
    known = isinstance(error, PermissionError | ValueError | TypeError | NotImplementedError)
    return known or name in (*_NOT_READY, *_NOT_VALID) or str(error).startswith("Forbidden")  # as gcsfs has it


def refusal_error(url: str, error: BaseException) -> TransferError:
    """Return the `TransferError` for a permanent error of a server."""
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
    """Describe an error, or its cause, by its type and message."""
    cause = error.__cause__ or error
    return ": ".join(filter(None, [type(cause).__name__, " ".join(str(cause).split())]))


def _options(scheme: str, inner_tries: int) -> dict[str, Any]:
    if scheme == "s3":
        # Retries on three levels multiply: an address that does not answer would take an hour.
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
    """List a folder's entries that begin with a prefix; with `deep`, those of its subfolders too."""
    if _scheme(url) in ("s3", "gs"):
        return list(filesystem.find(folder, prefix=prefix, detail=True).values())
    # On web servers `find` and `glob` skip folders that cannot be listed at the moment.
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
    """Yield a file's chunks from a byte on, each checked for its length."""
    filesystem, path = file_system(file.url)

    def fetch() -> bytes:
        end = min(begin + CHUNK_BYTES, file.size)
        content: bytes = filesystem.cat_file(path, start=begin, end=end)
        if len(content) == file.size:  # the server ignores ranges
            return content[begin:]
        if len(content) != end - begin:
            _refuse_change(file)
            raise OSError(errno.EIO, f"{len(content):,} bytes were received instead of {end - begin:,}")
        return content

    while begin < file.size:
        chunk = _with_retries(file.url, fetch, f", byte {begin:,}")
        begin += len(chunk)
        yield chunk
    _refuse_change(file)


def _refuse_change(file: RemoteFile) -> None:
    now = stat(file.url)
    if now.size != file.size or (None not in (now.version, file.version) and now.version != file.version):
        raise _changed(file.url)


def _changed(url: str) -> TransferError:
    return TransferError(f"{url}: changed while it was read; run again to read the new version")


def _with_retries(url: str, action: Callable[[], _T], place: str = "", tries: int | None = None) -> _T:
    """Return an action's result, retrying it after temporary failures."""
    # gcsfs itself makes six attempts in each of these.
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
                hint = "check the URL and the network, and run again: downloaded bytes are kept"
                raise TransferError(f"{url}{place}: {what}; {hint}") from error
        time.sleep(min(PAUSE_SECONDS * 2**number, LONGEST_PAUSE) * _random.uniform(0.5, 1))
    raise AssertionError("there is at least one try")


def _is_missing(error: BaseException) -> bool:
    status = _status(error)
    return status in (404, 410) or (status is None and isinstance(error, FileNotFoundError))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of aiohttp, botocore or gcsfs; None if there is none."""
    for each in filter(None, (error, error.__cause__)):
        response = getattr(each, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(each, "status", None) or vars(each).get("code")  # aiohttp warns of its own `code`
        if str(status).isdigit():
            return int(status)
    return None
