"""Asking the teacher: what the journal does not hold yet is asked for, several requests at a time, within a budget of
tokens.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tqdm import tqdm

from minillava.data.instruct.journal import Journal
from minillava.data.instruct.teacher import Request, Teacher
from minillava.errors import UserError

CHARACTERS_A_TOKEN = 4  # of English text, roughly: for the estimate alone


def missing(requests: Iterable[Request], teacher: Teacher, journal: Journal) -> list[Request]:
    """The requests whose replies the journal lacks."""
    return [request for request in requests if request.key(teacher.name) not in journal.replies]


def estimate(requests: Sequence[Request], max_tokens: int) -> tuple[int, int]:
    """(tokens to read, tokens to write at most) of the requests: a guess by characters, and the limit a reply."""
    read = sum(len(message["content"]) for request in requests for message in request.messages) // CHARACTERS_A_TOKEN
    return read, len(requests) * max_tokens


def collect(requests: Sequence[Request], teacher: Teacher, journal: Journal, budget: int = 0) -> None:
    """Ask for every request, each reply going to the journal at once.

    budget: tokens, read and written, that this call may use (0: no limit); no new request starts once they are used.
    After an error or Ctrl-C nothing new starts, the replies under way, which are paid for, are waited for, and then it
    is raised."""
    used, lock, halt = 0, threading.Lock(), threading.Event()

    def ask(request: Request) -> None:
        if not halt.is_set():
            try:
                answer(request)
            except BaseException:
                halt.set()  # here, before this thread takes the next request
                raise

    def answer(request: Request) -> None:
        nonlocal used
        if budget and used >= budget:
            raise UserError(
                f"The budget of {budget} tokens is used up; all replies are kept: the same command with a larger --budget goes on."
            )
        reply = teacher.write(request)
        journal.add(request.key(teacher.name), reply)
        with lock:
            used += reply.prompt_tokens + reply.reply_tokens
            bar.update()

    pool = ThreadPoolExecutor(teacher.concurrency)
    with tqdm(total=len(requests), desc="asking the teacher", leave=False, disable=None) as bar:
        try:
            done, _ = wait([pool.submit(ask, request) for request in requests], return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            halt.set()
            teacher.stop()
            pool.shutdown(wait=True, cancel_futures=True)
