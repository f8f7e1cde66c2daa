"""Where checkpoints may be: a local folder, or a prefix in a bucket; and what differs.

An object is written whole or not at all, and there are no folders to make, flush or rename. So in
a bucket the manifest, written last and in one request, is all that a checkpoint needs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from jaxmlcl.errors import CheckpointError, ConfigError, UserError

_T = TypeVar("_T")

# What fsspec needs for each store.
_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
# An unreachable address must not hang a run; the libraries would try for half an hour.
_REACH_SECONDS = 60.0
_FILES_AT_ONCE = 4
# What fsspec's own configuration does not say already. Listings are not cached, since Orbax writes
# past fsspec.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gcs": {"use_listings_cache": False, "requests_timeout": 120.0},
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"max_attempts": 2, "mode": "standard"},
        },
    },
}
_SIGN_IN = {
    "gs": (
        "sign in with `gcloud auth application-default login`, or name the key of a service "
        "account in GOOGLE_APPLICATION_CREDENTIALS"
    ),
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
}
_CREDENTIALS = re.compile(
    r"credential|anonymous caller|refresherror|expiredtoken|invalidaccesskeyid|"
    r"signaturedoesnotmatch|unauthenticated|unauthorized|\b401\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"permission|access ?denied|forbidden|\b403\b|allaccessdisabled", re.IGNORECASE
)
_ABSENT = re.compile(r"nosuchbucket|bucket .*(not exist|not found)", re.IGNORECASE)
_NETWORK = re.compile(
    r"connect|time[d ]*-?out|timeout|could ?n[o']t resolve|name or service|name resolution|dns|"
    r"unavailable|deadline|network|temporarily|\b50[0234]\b",
    re.IGNORECASE,
)


def check_place(place: str) -> None:
    """Refuse what is neither a folder nor a place in a store that is known.

    Raises:
      ConfigError: another scheme, or no bucket.

    Example:
      >>> check_place("gs://bucket/run")
      >>> check_place("hdfs://host/run")
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.ConfigError: hdfs://host/run: ...; use a folder, gs://BUCKET/PATH or ...
    """
    if not place.strip():
        raise ConfigError("checkpoint: folder is empty; name a folder, or leave it out")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", place)
    if scheme is None:
        return
    if scheme[1] not in _LIBRARIES:
        raise ConfigError(
            f"{place}: checkpoints cannot be kept at {scheme[0]}; use a folder, gs://BUCKET/PATH "
            "or s3://BUCKET/PATH"
        )
    bucket, *keys = place[scheme.end() :].rstrip("/").split("/")
    if not bucket or not all(key.strip(".") for key in keys) or re.search(r"[?#\s]", place):
        raise ConfigError(f"{place}: not a place in a bucket; write {scheme[0]}BUCKET/PATH")


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in a bucket.

    Example:
      >>> is_remote("s3://bucket/run"), is_remote("runs/digits")
      (True, False)
    """
    return os.fspath(place).startswith(tuple(f"{scheme}://" for scheme in _LIBRARIES))


def open_place(place: str | os.PathLike[str]) -> Path:
    """The folder: an absolute `Path`, or an object with the methods of one for a bucket.

    Nothing is asked of the store.

    Raises:
      ConfigError: another scheme, or no bucket.
      UserError: the libraries for this store are not installed.
    """
    text = os.fspath(place)
    check_place(text)
    if not is_remote(text):
        return Path(os.path.abspath(text))
    library = _LIBRARIES[text[:2]]
    if importlib.util.find_spec(library) is None:
        raise UserError(
            f"{text}: checkpoints in a bucket need {library}, which is not installed; run "
            'pip install "jaxmlcl[cloud]"'
        )
    # TensorFlow, if it is installed, has other errors and knows no s3.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec
    from etils import epath

    for scheme, defaults in _DEFAULTS.items():
        settings = fsspec.config.conf.setdefault(scheme, {})
        for name, value in defaults.items():
            settings.setdefault(name, value)
    # They log what they raise as well, with a traceback; errors are told once.
    for name in ("gcsfs", "s3fs", "fsspec", "aiobotocore", "google.auth"):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    return cast(Path, epath.Path(text))


def reach(folder: Path) -> None:
    """Ask the store for a listing, so that what is wrong is said at once and not by Orbax.

    Raises:
      CheckpointError: no credentials, no such bucket, no permission, or no answer.
    """
    bucket = folder.parents[-3] if len(folder.parents) > 2 else folder  # "/", "/gs", "/gs/BUCKET"

    def ask() -> None:
        files = _file_system(folder)
        try:
            files.ls(str(folder), detail=False)
        except FileNotFoundError:
            # An empty prefix is no error. Libraries would make a bucket that is not there.
            try:
                files.ls(str(bucket), detail=False)
            except FileNotFoundError:
                raise CheckpointError(
                    f"{bucket}: there is no such bucket, or it may not be listed; create it, or "
                    "correct checkpoint.folder"
                ) from None

    with explained(folder):
        _within(_REACH_SECONDS, ask)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn the errors of a store into one line; those of a local disk pass unchanged.

    Raises:
      CheckpointError: what the store answered, with the place and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(folder):
            raise
        raise explain(error, folder) from error


def explain(error: BaseException, place: Path) -> CheckpointError:
    """One line for an error of a store: where, what it answered, and what to do."""
    text = _text_of(error)
    scheme, bucket = str(place)[:2], str(place).split("/")[2]
    if _CREDENTIALS.search(text):
        what, mend = "no valid credentials", _SIGN_IN[scheme]
    elif _DENIED.search(text):
        what = "permission denied"
        mend = f"allow this account to list, read, write and delete objects in {bucket}"
    elif _ABSENT.search(text):
        what = "there is no such bucket"
        mend = f"create the bucket {bucket}, or correct checkpoint.folder"
    elif _NETWORK.search(text) or isinstance(error, TimeoutError):
        what = "no answer from the store"
        mend = "check the network and the endpoint, and run the same command again"
    else:
        what, mend = "the store refused", "run the same command again, or choose another place"
    return CheckpointError(f"{place}: {what} ({text[:300]}); {mend}")


def _text_of(error: BaseException) -> str:
    """What an error and its causes say, each once."""
    parts: list[str] = []
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        text = f"{type(current).__name__}: {current}"
        if not any(str(current) and str(current) in part for part in parts):
            parts.append(text)
        context = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or context
    return "; ".join(parts)


def _within(seconds: float, action: Callable[[], _T]) -> _T:
    """The result of an action, or TimeoutError; a thread that hangs does not hold the program."""
    done: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(action())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="reach-storage", daemon=True).start()
    try:
        return done.result(timeout=seconds)
    except concurrent.futures.TimeoutError:
        if done.done():
            raise
        raise TimeoutError(f"no answer within {seconds:g} seconds") from None


def _file_system(folder: Path) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(str(folder))[0]


def size_of(folder: Path) -> Callable[[str], int]:
    """A function from the name of a file below a folder to its bytes; one listing in a bucket.

    The function raises FileNotFoundError for what is not there.
    """
    if not is_remote(folder):
        return lambda name: (folder / name).stat().st_size
    listing = _listing(folder)

    def look(name: str) -> int:
        if name not in listing:
            raise FileNotFoundError(name)
        return listing[name]

    return look


def _listing(folder: Path) -> dict[str, int]:
    """Every object below a folder of a bucket, by its name from there, and its bytes."""
    files = _file_system(folder)
    prefix = str(folder).partition("://")[2].rstrip("/") + "/"
    found = files.find(str(folder), detail=True)
    return {name.removeprefix(prefix): int(info["size"]) for name, info in found.items()}


@contextlib.contextmanager
def measuring(folder: Path, names: Iterable[str]) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A function from a file's name to its bytes and SHA-256, read back; in a bucket some ahead."""
    if not is_remote(folder):
        yield lambda name: _measure(folder / name)
        return
    pool = concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE)
    try:
        ahead = {name: pool.submit(_measure, folder / name) for name in names}
        yield lambda name: ahead[name].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _measure(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"bytes": opened.tell(), "sha256": digest}


def objects(folder: Path) -> list[str]:
    """The names of all objects below a folder of a bucket, sorted."""
    return sorted(_listing(folder))
