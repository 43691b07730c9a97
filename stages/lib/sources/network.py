"""The network: what the Hub's client asks is asked a few times, and a line says why it was not answered.

The client itself waits half a minute where nobody listens, as long as a busy Hub wants, and for ever for a listing that
does not come; after a reset it gives up. Of some refusals it says that the network is down.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2  # what the client speaks HTTP with
from huggingface_hub import close_session, constants, get_session
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging, parse_ratelimit_headers

WAITS = (0.5, 1.5)  # seconds before a request is sent again
LONGEST_WAIT = 10  # seconds that a busy Hub may ask for
SILENCE = 10  # seconds without a byte, where the client sets no limit
TIMEOUTS = ("connect", "read", "write", "pool")
BUSY = (408, 429)  # beside 500 and more: statuses that may pass
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
XET_TRIES = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}  # of the part of the client that is not Python


NO_HUB = f"{constants.ENDPOINT} answers as no Hugging Face Hub does; check HF_ENDPOINT and the proxy"


class Refused(Exception):
    """No answer, or a refusal; the message says why and what to do."""


FAILURES = (  # what the Hub's client raises, beside `Refused`, where an answer or a setting is not as it expects
    *(Refused, OSError, httpx2.HTTPError, httpx2.InvalidURL),
    *(RuntimeError, ImportError, ValueError, TypeError, KeyError),
)


class _Resumable(httpx2.SyncByteStream):
    """A body that may be reset while it is read: for the client, which then goes on, as if it had just ended."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.stream
        except httpx2.NetworkError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error

    def close(self) -> None:
        self.stream.close()


@contextmanager
def few_tries(page: str) -> Iterator[None]:
    """Let the Hub's client send a request a few times, within seconds, and raise `Refused` where that does not help.

    Args:
        page: The address of the repository, for messages.
    """
    client, telemetry, verbosity = get_session(), constants.HF_HUB_DISABLE_TELEMETRY, logging.get_verbosity()
    send = client.send

    def send_patiently(request: httpx2.Request, **options: Any) -> httpx2.Response:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {name: limits.get(name) or SILENCE for name in TIMEOUTS}
        for wait in (*WAITS, None):
            try:
                response = send(request, **options)
            except httpx2.TransportError as error:
                if wait is None:
                    raise Refused(unreachable(error)) from error
            else:
                if response.status_code < 400:
                    if options.get("stream"):
                        response.stream = _Resumable(response.stream)
                    return response
                response.close()
                asked = seconds_to_wait(response)
                passes = response.status_code >= 500 or response.status_code in BUSY
                if wait is None or not passes or asked > LONGEST_WAIT:
                    raise Refused(refusal(response, page))
                wait = max(wait, asked)
            time.sleep(wait)
        raise AssertionError

    client.send = send_patiently
    constants.HF_HUB_DISABLE_TELEMETRY = True  # which would ask the Hub for more, first
    logging.set_verbosity_error()
    for name, value in XET_TRIES.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        close_session()  # the next client is the Hub's own again
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        logging.set_verbosity(verbosity)


def explain(error: Exception) -> str:
    """Say why the Hub's client failed, and what to do."""
    reason, cache = " ".join(str(error).split())[:200], constants.HF_HUB_CACHE
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, HFValidationError):
        return reason
    if isinstance(error, httpx2.TransportError):
        return unreachable(error)
    if isinstance(error, ImportError):  # of a package that proxies of some kinds need
        return f"the proxy that is set cannot be used: {reason}"
    if "No space left" in reason or "Disk quota" in reason:  # Xet has no number of it
        return f"no space left on the disk of {cache}; make some, or set HF_HOME to a folder on another disk"
    if isinstance(error, RuntimeError):  # of Xet, the Hub's store of large files, whose client raises no narrower one
        return f"the Hugging Face Hub's store of large files fails ({reason}); run again, or set HF_HUB_DISABLE_XET=1"
    if isinstance(error, OSError) and error.errno:
        return f"files cannot be kept in {error.filename or cache}: {error.strerror}"
    if isinstance(error, OSError):
        return f"the Hugging Face Hub did not give it: {reason}"
    return f"{NO_HUB} ({reason})"


def unreachable(error: httpx2.TransportError) -> str:
    """Say why no answer came."""
    said = str(error) or type(error).__name__
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    through = f" through the proxy of {' and '.join(proxies)}" if proxies else ""
    check = "the network" + (" and the proxy" if proxies else "")
    if isinstance(error, httpx2.UnsupportedProtocol):
        return f"HF_ENDPOINT is {constants.ENDPOINT!r}; expected an address such as https://huggingface.co"
    if isinstance(error, httpx2.ProxyError):
        return f"the Hugging Face Hub does not answer{through}, which refuses ({said}); check {check}"
    if "CERTIFICATE" in said.upper():
        return f"the Hugging Face Hub's certificate is not trusted ({said}); is a proxy's own missing in SSL_CERT_FILE?"
    if isinstance(error, httpx2.ConnectError | httpx2.TimeoutException):
        return f"the Hugging Face Hub does not answer{through} ({constants.ENDPOINT}: {said}); check {check}"
    return f"the Hugging Face Hub breaks off{through} ({said}); run again, and check {check}"


def seconds_to_wait(response: httpx2.Response) -> int:
    """Return how long a busy Hub asks to wait."""
    after = response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(response.headers)
    return int(after) if after.isdigit() else limit.reset_in_seconds if limit and not limit.remaining else 0


def refusal(response: httpx2.Response, page: str) -> str:
    """Say why the Hub refuses, by what tells its refusals apart: the status, and what stands in two of its headers."""
    status, asked = response.status_code, response.request
    code, said = (response.headers.get(f"X-Error-{name}", "") for name in ("Code", "Message"))
    token = "authorization" in asked.headers
    if status == 429:
        limit = seconds_to_wait(response)
        wait = f"wait {limit} seconds" if limit else "wait some minutes"
        more = "" if token else "; with `hf auth login` it allows more"
        return f"the Hugging Face Hub limits how often it may be asked (HTTP 429): {wait} and run again{more}"
    if status >= 500 or status in BUSY:
        return f"the Hugging Face Hub fails (HTTP {status}{said and f': {said}'}); run again later"
    if said.startswith("Invalid credentials"):
        return "the Hugging Face Hub refuses this token, wrong or expired: run `hf auth login` again, or unset HF_TOKEN"
    if code == "GatedRepo" and token:
        return f"gated, and the account of this token may not read it: accept its licence at {page}"
    if code == "GatedRepo":
        return f"gated, and there is no token here: accept its licence at {page}, then run `hf auth login`"
    if code == "RevisionNotFound":
        return f"no such revision; {page}/commits/main lists what there is"
    if code == "RepoNotFound" or (status == 401 and not token):
        private = "the account of this token may not read it" if token else "private: then run `hf auth login`"
        return f"no such repository on the Hugging Face Hub ({page}), or {private}"
    if code == "EntryNotFound":
        return f"the Hugging Face Hub lists a file that it does not have: {asked.url.path}"
    if status in (401, 403):
        return f"the Hugging Face Hub refuses (HTTP {status}{said and f': {said}'}); may the token read {page}?"
    return f"{asked.url.copy_with(query=None)} answers HTTP {status}, as no Hugging Face Hub does; check HF_ENDPOINT"
