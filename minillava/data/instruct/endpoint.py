"""A teacher behind any endpoint that speaks OpenAI's chat completions: OpenAI's own, or vLLM, llama.cpp, Ollama and
others on one's own machine.

The environment says which: OPENAI_BASE_URL (without it, OpenAI's), OPENAI_API_KEY, OPENAI_MODEL. The client library
`openai` is needed for this teacher alone. A fault that may pass (429, 5xx, time-outs, cut connections, a body that is
no chat completion or has no end) is tried again after a pause, which the endpoint's Retry-After sets or which doubles
from try to try. A fault that will not pass (a wrong key, an unknown model) ends the run in one sentence. A parameter
that the endpoint does not take is left out from then on.
"""

import math
import os
import random
import re
import threading
from concurrent.futures import TimeoutError as TookTooLong  # before Python 3.11 it is not the built-in one
from dataclasses import dataclass, field

from minillava.data.instruct.body import bound
from minillava.data.instruct.secret import hidden, secrets_of
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.teacher import Reply, Request
from minillava.data.instruct.threads import in_thread
from minillava.errors import UserError, say

LONGEST_PAUSE = 60.0  # seconds; a Retry-After beyond it is cut to it
MOST_TOKENS = 10**9  # of one reply; a larger count is nonsense
OPTIONAL = re.compile(r"\b(temperature|max_tokens|max_completion_tokens|seed)\b")
# how an endpoint says that it takes the parameter, but not such a value
WRONG_VALUE = re.compile(r"too (large|high|big)|at (most|least)|exceed|between|(less|greater) than|context", re.I)


def from_environment(settings: Settings) -> "EndpointTeacher":
    """The teacher that OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL name; UserError for what is missing."""
    try:
        import openai
    except ImportError:
        raise UserError("The teacher openai needs the client library: pip install openai") from None
    model, key, url = (os.environ.get(f"OPENAI_{name}", "").strip() for name in ("MODEL", "API_KEY", "BASE_URL"))
    if not model:
        raise UserError(
            "Set OPENAI_MODEL to the model that is to write; OPENAI_BASE_URL and OPENAI_API_KEY say where and with "
            "which key."
        )
    if not key and not url:
        raise UserError("Set OPENAI_API_KEY to your key, or OPENAI_BASE_URL to an endpoint of your own.")
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds characters that no key has: copy it again.")
    if url and not re.match(r"https?://.", url):
        raise UserError("OPENAI_BASE_URL must begin with http:// or https://, as in http://127.0.0.1:8000/v1")
    options = dict(api_key=key or "none", base_url=url or None, timeout=settings.timeout, max_retries=0)
    try:
        if hasattr(openai, "DefaultHttpxClient"):  # the library has it since version 1.17
            hooks = {"response": [lambda response: bound(response, settings.timeout)]}
            options["http_client"] = openai.DefaultHttpxClient(event_hooks=hooks)
        return EndpointTeacher(openai.OpenAI(**options), model, settings, secrets_of(key, url))
    except Exception as error:  # an address or a proxy that is none; the library raises several kinds
        raise UserError(f"OPENAI_BASE_URL or the proxy cannot be used: {type(error).__name__}.") from None


class _PassingFault(Exception):
    """A fault of one try; `pause` is what the endpoint asks for, in seconds."""

    def __init__(self, why: str, pause: float | None = None):
        super().__init__(why)
        self.pause = pause


@dataclass
class EndpointTeacher:
    """Writes what the model at the endpoint writes. A request's seed is passed on; endpoints may or may not honour it.
    The secrets are neither in a reply nor in an error.
    """

    client: object  # openai.OpenAI, whose own retries are off
    model: str
    settings: Settings
    secrets: list[str]
    first_pause: float = 1.0  # seconds
    optional: list[str] = field(default_factory=lambda: ["temperature", "max_tokens", "seed"])  # those it takes
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"openai {self.model} temperature {self.settings.temperature} max_tokens {self.settings.max_tokens}"

    @property
    def concurrency(self) -> int:
        return self.settings.concurrency

    def stop(self) -> None:
        self.stopping.set()

    def write(self, request: Request) -> Reply:
        """The model's reply; UserError when it cannot be had: after so many tries, or at once for a fault that trying
        again will not mend.
        """
        for number in range(1, self.settings.tries + 1):
            try:
                return self._try(request)
            except _PassingFault as fault:
                last = fault
            pause = last.pause
            if pause is None:
                pause = self.first_pause * 2 ** (number - 1) * random.uniform(0.75, 1.25)
            if number < self.settings.tries and self.stopping.wait(min(pause, LONGEST_PAUSE)):
                break
        why = hidden(str(last), self.secrets, 4)[:70]
        raise UserError(
            f"The endpoint gave no reply in {number} tries ({why}); all replies so far are kept, the same command goes on."
        )

    def _try(self, request: Request) -> Reply:
        import openai

        while True:  # each round without one more parameter
            sent = self._parameters(request)
            try:
                asked = in_thread(lambda sent=sent: self.client.chat.completions.create(**sent))
                return self._reply(asked.result(self.settings.timeout))  # as a whole, even if a byte comes now and then
            except (openai.APITimeoutError, TookTooLong):
                raise _PassingFault("it took too long") from None
            except openai.APIStatusError as error:
                if error.status_code in (408, 409, 429) or error.status_code >= 500:
                    raise _PassingFault(f"status {error.status_code}", _retry_after(error.response.headers)) from None
                if not self._left_out(error, sent):
                    why = hidden(_message(error), self.secrets, 4)
                    raise UserError(f"The endpoint refuses ({error.status_code}): {why[:120]}") from None
            except _PassingFault:
                raise
            except Exception as error:  # no connection, or a body that the library cannot read: it raises many kinds
                cause = error.__cause__ or error
                raise _PassingFault(str(cause) or type(cause).__name__) from None

    def _parameters(self, request: Request) -> dict:
        values = {
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "max_completion_tokens": self.settings.max_tokens,
            "seed": request.seed,
        }
        optional = {name: values[name] for name in self.optional}
        return {"model": self.model, "messages": list(request.messages), **optional}

    def _left_out(self, error, sent: dict) -> bool:
        """Whether the endpoint refuses a parameter that was sent; no request has it from now on. What OpenAI once named
        max_tokens is max_completion_tokens today.
        """
        said = f"{error.message} {error.body}"
        refused = next((name for name in OPTIONAL.findall(said) if name in sent), None)
        if error.status_code not in (400, 422) or refused is None or WRONG_VALUE.search(said):
            return False
        with self.lock:
            if refused in self.optional:
                others = [name for name in self.optional if name != refused]
                self.optional = [*others, "max_completion_tokens"] if refused == "max_tokens" else others
                say(f"The endpoint does not take {refused}: it is asked without.")
        return True

    def _reply(self, answer) -> Reply:
        """The first choice; a fault where the body is no chat completion or has none.

        An empty text is a reply, and left to the filters.
        """
        choices = getattr(answer, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if not hasattr(message, "content"):
            raise _PassingFault("no chat completion")
        text = _text(message.content)
        used = getattr(answer, "usage", None)
        counts = [getattr(used, name, 0) for name in ("prompt_tokens", "completion_tokens")]
        counts = [count if isinstance(count, int) and 0 < count < MOST_TOKENS else 0 for count in counts]
        return Reply(hidden(text, self.secrets, 8), *counts, getattr(choice, "finish_reason", None) == "length")


def _text(content) -> str:
    """The text of a message, which some endpoints send in parts, thoughts apart from text."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _message(error) -> str:
    said = error.body.get("message") if isinstance(error.body, dict) else error.body
    return str(said or error.message or "no reason given")


def _retry_after(headers) -> float | None:
    """Seconds; a date or nonsense counts as not given."""
    try:
        seconds = float(headers.get("retry-after"))
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf else None
