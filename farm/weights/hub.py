"""The hub: brings files of a repository into huggingface_hub's own cache, and says in words why it could not.

Knows nothing of models; who calls says which files are wanted. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
mean everywhere; so does HF_TOKEN, unless the farm was given a token of its own.
"""

from __future__ import annotations

import errno
import glob
import logging
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from farm.errors import HubDown, ModelBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

log: Final = logging.getLogger(__name__)

_WATCH_S: Final = 0.5
_TIMEOUT_S: Final = 20.0
_FORBIDDEN: Final = (401, 403)
_NOT_FOUND: Final = 404
_CLIENT_ERRORS: Final = range(400, 500)
_TRY_LATER: Final = (408, 429)


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub of repositories. Without a `token` the one of HF_TOKEN or of `hf auth login` is used, if there is any.

    With `is_asked` False nothing is downloaded: what is not in the cache counts as not there.
    """

    token: str | None = None
    endpoint: str | None = None
    cache_dir: Path | None = None
    is_asked: bool = True

    def fetch(
        self,
        repository: str,
        revision: str | None,
        choose: Callable[[Sequence[str]], Sequence[str]],
        *,
        probe: str,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Return the folder with those files of a repository that `choose` picks of all names, downloading what lacks.

        When the hub cannot be reached, what an earlier download left is returned, if it has the file `probe`; whether
        it is whole is for the caller to see. Raises HubDown, and ModelBroken for all that waiting does not mend.
        """
        if not self.is_asked:
            if (folder := self._cached(repository, revision, probe)) is not None:
                return folder
            raise ModelBroken(f"{repository} has not been downloaded")
        from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415  a second of import, needed by few
        from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415

        disable_progress_bars()  # progress is ours to show
        api = HfApi(endpoint=self.endpoint, token=self.token)
        try:
            with _in_words(repository, revision):
                files = (
                    api.model_info(repository, revision=revision, files_metadata=True, timeout=_TIMEOUT_S).siblings
                    or []
                )
        except (HubDown, _Offline) as error:
            if (folder := self._cached(repository, revision, probe)) is not None:
                log.warning("%s; taking what is here already", error, extra={"action": "hub_unreachable"})
                return folder
            raise
        sizes = {file.rfilename: file.size or 0 for file in files}
        chosen = choose(list(sizes))
        lacking = sum(sizes[name] for name in chosen if not self._is_cached(repository, revision, name))
        self._check_room(repository, lacking)
        with _in_words(repository, revision), self._watched(repository, lacking, on_progress):
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=[glob.escape(name) for name in chosen],
                    token=self.token,
                    endpoint=self.endpoint,
                    cache_dir=self.cache_dir,
                )
            )

    def find_cached(self, repository: str, revision: str | None, name: str) -> Path | None:
        """Return where a file of a repository is, if it was downloaded before."""
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

        found = try_to_load_from_cache(repository, name, cache_dir=self.cache_dir, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _cached(self, repository: str, revision: str | None, probe: str) -> Path | None:
        """Return the folder of an earlier download, if it has `probe`, which may be in a folder."""
        found = self.find_cached(repository, revision, probe)
        return None if found is None else found.parents[probe.count("/")]

    def _is_cached(self, repository: str, revision: str | None, name: str) -> bool:
        return self.find_cached(repository, revision, name) is not None

    def _folder(self, repository: str) -> Path:
        from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415

        return Path(self.cache_dir or HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"

    def _check_room(self, repository: str, needed_bytes: int) -> None:
        """Refuse a download that the disk has no room for, before it begins."""
        folder = self._folder(repository)
        present = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
        free_bytes = shutil.disk_usage(present).free
        if needed_bytes > free_bytes:
            raise ModelBroken(
                f"no room on the disk for {repository}: {needed_bytes / 1e9:.1f} GB are to be downloaded to"
                f" {folder}, {free_bytes / 1e9:.1f} GB are free"
            )

    @contextmanager
    def _watched(
        self, repository: str, num_bytes: int, on_progress: Callable[[int, int], None] | None
    ) -> Iterator[None]:
        """Tell `on_progress` how much of a download has come, as the files on the disk grow."""
        if on_progress is None or not num_bytes:
            yield
            return
        blobs = self._folder(repository) / "blobs"
        before = _bytes_in(blobs)
        is_over = threading.Event()

        def watch() -> None:
            told = 0
            while not is_over.wait(_WATCH_S):
                # A file that is just being renamed is not counted: what has come once has come.
                told = max(told, min(_bytes_in(blobs) - before, num_bytes))
                on_progress(told, num_bytes)

        watcher = threading.Thread(target=watch, name="download-progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
        on_progress(num_bytes, num_bytes)


class _Offline(ModelBroken):
    """HF_HUB_OFFLINE forbids what would be needed."""


@contextmanager
def _in_words(repository: str, revision: str | None) -> Iterator[None]:
    """Say what the hub's library raises in our own words: HubDown where waiting may help, ModelBroken elsewhere."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelBroken(
            f"the hub gives {repository} only to those who accepted its licence: accept it at"
            f" https://huggingface.co/{repository}, and set HF_TOKEN or FARM_HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelBroken(
            f"the hub has no repository {repository}, or it is private and the token, if there is one, may not read it"
            " (HF_TOKEN or FARM_HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelBroken(f"the hub's repository {repository} has no revision {revision!r}") from error
    except errors.OfflineModeIsEnabled as error:
        raise _Offline(f"{repository} has not been downloaded, and HF_HUB_OFFLINE is set") from error
    except errors.HFValidationError as error:
        raise ModelBroken(f"{repository!r} is no name of a repository: {error}") from error
    except errors.HfHubHTTPError as error:
        raise _of_status(repository, error.response.status_code) from error
    # A timeout, a refused connection, a name that does not resolve; the second is what is made of them during a
    # download, the third what the hub's newer protocol raises.
    except (errors.HTTPError, errors.LocalEntryNotFoundError, errors.XetDownloadError) as error:
        raise HubDown(f"the hub cannot be reached for {repository}: {_first_line(error)}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelBroken(f"the disk became full while {repository} was being downloaded") from error
        raise ModelBroken(f"{repository} cannot be written to the disk: {_first_line(error)}") from error


def _of_status(repository: str, status: int) -> HubDown | ModelBroken:
    if status in _FORBIDDEN:
        return ModelBroken(f"the hub refuses the token for {repository} (HF_TOKEN or FARM_HF_TOKEN)")
    if status == _NOT_FOUND:
        return ModelBroken(f"the hub lacks a file of {repository}")
    if status in _CLIENT_ERRORS and status not in _TRY_LATER:
        return ModelBroken(f"the hub refuses {repository} with status {status}")
    return HubDown(f"the hub answers {repository} with status {status}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # it was finished, and has another name now
            continue
    return total


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
