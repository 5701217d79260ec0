"""Asking the teacher for what the journal does not hold yet: several requests at a time, within a budget of tokens."""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait

from tqdm import tqdm

from minillava.data.instruct.journal import Journal
from minillava.data.instruct.teacher import Request, Teacher
from minillava.data.instruct.threads import in_thread
from minillava.errors import UserError

CHARACTERS_A_TOKEN = 4  # of English text, roughly: for the estimate alone


def missing(requests: Iterable[Request], teacher: Teacher, journal: Journal) -> list[Request]:
    """The requests whose replies the journal lacks, each once."""
    keyed = {request.key(teacher.name): request for request in requests}
    return [request for key, request in keyed.items() if key not in journal.replies]


def estimate(requests: Sequence[Request], max_tokens: int) -> tuple[int, int]:
    """(tokens to read, tokens to write at most) of the requests: a guess by characters, and the limit of a reply."""
    read = sum(len(message["content"]) for request in requests for message in request.messages) // CHARACTERS_A_TOKEN
    return read, len(requests) * max_tokens


def collect(requests: Sequence[Request], teacher: Teacher, journal: Journal, budget: int = 0) -> None:
    """Ask for every request; each reply goes to the journal at once.

    budget: tokens, read and written, that this call may use (0: no limit); no new request starts once they are used.
    After an error or Ctrl-C nothing new starts, but the replies under way, which are paid for, are waited for. A second
    Ctrl-C ends this wait: the threads end with the program.
    """
    todo, used, lock, halt = iter(requests), 0, threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not halt.is_set():
                with lock:
                    request = next(todo, None)
                if request is None:
                    return
                ask(request)
        except BaseException:
            halt.set()  # here, before another thread takes the next request
            raise

    def ask(request: Request) -> None:
        nonlocal used
        if budget and used >= budget:
            raise UserError(
                f"The budget of {budget} tokens is used up; all replies are kept: the same command with a larger "
                "--budget goes on."
            )
        reply = teacher.write(request)
        journal.add(request.key(teacher.name), reply)
        with lock:
            used += reply.prompt_tokens + reply.reply_tokens
            bar.update()

    with tqdm(total=len(requests), desc="asking the teacher", leave=False, disable=None) as bar:
        workers = []
        try:
            for _ in range(min(teacher.concurrency, len(requests))):
                workers.append(in_thread(work))
            done, _ = wait(workers, return_when=FIRST_EXCEPTION)
        finally:
            halt.set()
            teacher.stop()
            wait(workers)
    for worker in done:
        worker.result()
