"""Uploads: files to a repository of the Hugging Face Hub, all in one commit, or none.

The client's `upload_folder` makes several commits of a large folder, so that half of one could look whole. Here large
files go to the Hub's store first, where nobody sees them, and one commit then puts all files in place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from httpx2 import TransportError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, constants, get_session
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import logging

from stages.lib.params import Mistake
from stages.lib.publishing.card import MADE_OF
from stages.lib.sources.files import git_blob_sha1, sha256
from stages.lib.sources.network import FAILURES, explain, few_tries, refusal

KEPT = ".gitattributes"  # the Hub's own, which says what it stores apart
SILENCE = 60  # seconds without a byte: the Hub looks at every file before it confirms a commit


def upload(api: HfApi, repo: str, files: Mapping[str, Path], private: bool, title: str) -> str:
    """Make a repository hold exactly these files; return the commit. What it held before stays in its history.

    Args:
        api: The Hub, and the token.
        repo: owner/name; it is created where there is none.
        files: By their paths in the repository.
        private: Whether only its owner may see it.
        title: Of the commit.

    Raises:
        Mistake: Nothing was changed, for the reason given, or the Hub no longer answers.
    """
    page = f"{api.endpoint}/{repo}"
    try:
        with patient():
            if not exists(api, repo):
                api.create_repo(repo, private=private)
        before = read_repository(api, repo)
    except FAILURES as error:
        raise Mistake(f"{page}: {why(error, page)}") from None
    refuse_other(before, private, page)
    gone = {sibling.rfilename for sibling in before.siblings or []} - {KEPT, *files}
    operations = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in sorted(gone)),
    ]
    failure = None
    try:
        with patient():
            api.create_commit(repo, operations, commit_message=title, parent_commit=before.sha)
    except FAILURES as error:  # perhaps the commit was made, and its answer lost
        failure = why(error, page)
    try:
        after = read_repository(api, repo)
    except FAILURES as error:
        reason = failure or why(error, page)
        raise Mistake(f"{page}: {reason}; what it holds now cannot be asked: run again, which finds out") from None
    differing = list_differing(after, files)
    if differing and failure:
        state = "holds what it held before" if after.sha == before.sha else "was changed by somebody else meanwhile"
        raise Mistake(f"{page}: {failure}; it {state}. Run again: what the Hub stored already is not sent twice")
    if differing:
        raise Mistake(f"{page}: not as it was sent: {differing}; run again, which sends it anew")
    return str(after.sha)


def exists(api: HfApi, repo: str) -> bool:
    """Return whether there is such a repository that the token may read."""
    try:
        api.model_info(repo, timeout=SILENCE)
    except RepositoryNotFoundError:
        return False
    return True


def refuse_other(found: ModelInfo, private: bool, page: str) -> None:
    """Refuse a repository that is not as private as was asked, or that holds what was not published from here."""
    if found.private != private:
        is_, other = ("private", "leave out --public") if found.private else ("public", "say --public")
        raise Mistake(f"{page}: is {is_}; choose another name, change that in its settings, or {other}")
    files = sorted({sibling.rfilename for sibling in found.siblings or []} - {KEPT})
    if files and not (found.card_data and MADE_OF in found.card_data):
        raise Mistake(f"{page}: holds what was not published from here ({', '.join(files[:3])}); choose another name")


def read_repository(api: HfApi, repo: str) -> ModelInfo:
    """Ask what a repository holds, and the hashes."""
    with few_tries(f"{api.endpoint}/{repo}"):
        return api.model_info(repo, files_metadata=True)


def list_differing(found: ModelInfo, files: Mapping[str, Path]) -> str:
    """Name the files that are not there as they are here, and those that are there alone."""
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in found.siblings or []}
    digests = {name: sha256 if len(hashes.get(name) or "") == 64 else git_blob_sha1 for name in files}
    differing = {name for name, path in files.items() if digests[name](path) != hashes.get(name)}
    return ", ".join(sorted(differing | (hashes.keys() - files.keys() - {KEPT})))


@contextmanager
def patient() -> Iterator[None]:
    """Let the Hub's client wait for an answer, but not for ever, and keep its warnings to itself."""
    client, verbosity = get_session(), logging.get_verbosity()
    timeout, client.timeout = client.timeout, SILENCE
    logging.set_verbosity_error()
    try:
        yield
    finally:
        client.timeout = timeout
        logging.set_verbosity(verbosity)


def why(error: Exception, page: str) -> str:
    """Say why the Hub's client failed, and what to do."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, RuntimeError | ValueError) and isinstance(error.__cause__, HfHubHTTPError | TransportError):
        error = error.__cause__  # of a file that could not be sent, or a card that was refused
    if not isinstance(error, HfHubHTTPError):
        return explain(error)
    status, said = error.response.status_code, " ".join((error.server_message or "").split())
    if status in (401, 403) and not said.startswith("Invalid credentials"):
        return f"the Hugging Face Hub refuses (HTTP {status}: {said}); log in with a token that may write there"
    if status in (400, 409, 412, 413, 422):  # it understood, and wants something else
        return f"the Hugging Face Hub refuses (HTTP {status}: {said})"
    return refusal(error.response, page)
