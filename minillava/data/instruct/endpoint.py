"""A teacher behind any endpoint that speaks OpenAI's chat completions: OpenAI's own, or vLLM, llama.cpp, Ollama and
others on one's own machine.

The environment says which: OPENAI_BASE_URL (without it, OpenAI's), OPENAI_API_KEY, OPENAI_MODEL. The client library
`openai` is needed for this teacher alone. What may mend itself (429, 5xx, time-outs, cut connections, replies without
choices or that are no JSON) is tried again after a pause, which the endpoint's Retry-After sets or which doubles from
try to try; what will not (a wrong key, an unknown model) ends the run in one sentence."""

import math
import os
import random
import threading
from dataclasses import dataclass, field

from minillava.data.instruct.teacher import Reply, Request
from minillava.errors import UserError

LONGEST_PAUSE = 60.0  # seconds; a Retry-After beyond it is cut to it


def from_environment(
    temperature: float, max_tokens: int, concurrency: int, timeout: float, tries: int
) -> "EndpointTeacher":
    """The teacher that OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL name; UserError for what is missing."""
    try:
        import openai
    except ImportError:
        raise UserError("The teacher openai needs the client library: pip install openai") from None
    model, key, url = (os.environ.get(f"OPENAI_{name}", "") for name in ("MODEL", "API_KEY", "BASE_URL"))
    if not model:
        raise UserError(
            "Set OPENAI_MODEL to the model that is to write; OPENAI_BASE_URL and OPENAI_API_KEY say where and with which key."
        )
    if not key and not url:
        raise UserError("Set OPENAI_API_KEY to your key, or OPENAI_BASE_URL to an endpoint of your own.")
    try:
        client = openai.OpenAI(api_key=key or "none", base_url=url or None, timeout=timeout, max_retries=0)
    except Exception as error:  # a base URL or a key that is none; the library raises several kinds
        raise UserError(f"The endpoint {url} cannot be used: {error}.") from None
    return EndpointTeacher(client, model, temperature, max_tokens, concurrency, tries)


class _PassingFault(Exception):
    """A fault of one try; `pause` is what the endpoint asks for, in seconds."""

    def __init__(self, why: str, pause: float | None = None):
        super().__init__(why)
        self.pause = pause


@dataclass
class EndpointTeacher:
    """Writes what the model at the endpoint writes. A request's seed is passed on; endpoints may or may not honour it."""

    client: object  # openai.OpenAI, whose own retries are off
    model: str
    temperature: float = 0.7
    max_tokens: int = 1024
    concurrency: int = 4
    tries: int = 6
    first_pause: float = 1.0  # seconds
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"openai {self.model} temperature {self.temperature} max_tokens {self.max_tokens}"

    def stop(self) -> None:
        self.stopping.set()

    def write(self, request: Request) -> Reply:
        """The model's reply; UserError when it cannot be had: after `tries` tries, or at once for a fault that trying
        again will not mend.
        """
        for number in range(self.tries):
            try:
                return self._try(request)
            except _PassingFault as fault:
                last = fault
            pause = self.first_pause * 2**number * random.uniform(0.75, 1.25) if last.pause is None else last.pause
            if number + 1 < self.tries and self.stopping.wait(min(pause, LONGEST_PAUSE)):
                break
        raise UserError(
            f"The endpoint gave no reply in {number + 1} tries ({last}); all replies so far are kept, the same command goes on."
        )

    def _try(self, request: Request) -> Reply:
        import openai

        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=list(request.messages),
                temperature=self.temperature,
                max_tokens=self.max_tokens,
                seed=request.seed,
            )
        except openai.APITimeoutError:
            raise _PassingFault("it took too long") from None
        except openai.APIConnectionError as error:
            raise _PassingFault(f"no connection: {error.__cause__ or error}") from None
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise _PassingFault(f"status {error.status_code}", _retry_after(error.response.headers)) from None
            raise UserError(f"The endpoint refuses ({error.status_code}): {_message(error)}") from None
        except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON
            raise _PassingFault(f"not a reply: {type(error).__name__}") from None
        return _reply(answer)


def _reply(answer) -> Reply:
    """The first choice; a fault where the body is no chat completion or has none.

    An empty text is a reply, and left to the filters.
    """
    choices = getattr(answer, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        raise _PassingFault("a reply without choices")
    text = message.content if isinstance(message.content, str) else ""
    used = answer.usage
    counts = [getattr(used, name, 0) for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, reply_tokens = (count if isinstance(count, int) else 0 for count in counts)
    return Reply(text, prompt_tokens, reply_tokens, choices[0].finish_reason == "length")


def _message(error) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message or "no reason given")[:120]


def _retry_after(headers) -> float | None:
    """Seconds; a date or nonsense counts as not given."""
    try:
        seconds = float(headers.get("retry-after"))
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < math.inf else None
