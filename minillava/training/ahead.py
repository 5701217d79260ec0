"""The batches of the next steps, made ahead by a thread or by processes while the model computes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from minillava.errors import UserError


@dataclass
class Made:
    """A step's tensors, or why there are none, and which records were found unusable on the way: (label, why)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    error: str = ""
    unusable: list[tuple[dict, str]] = field(default_factory=list)


class Ahead:
    """What `make` gives for each step, made ahead by a thread, or by processes, two steps for each of them."""

    def __init__(self, make: Callable[[int], Made], workers: int):
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise UserError("--workers needs a system whose processes can fork: leave it out")
        self.make, self.workers, self.made = make, workers, {}
        if workers:
            fork = multiprocessing.get_context("fork")  # so that the records are shared, not copied
            self.pool = ProcessPoolExecutor(workers, fork, _begin, (make, os.getpid()))
        else:
            self.pool = ThreadPoolExecutor(1, "batch")

    def __getitem__(self, step: int) -> Made:
        steps = range(step, step + 1 + max(1, 2 * self.workers))
        try:
            self.made = {at: self.made.get(at) or self._submit(at) for at in steps}
            made = self.made[step].result()
        except BrokenProcessPool:
            why = "perhaps because memory is short: --resume with fewer goes on"
            raise UserError(f"a process of --workers was killed, {why}") from None
        return replace(made[1], tensors=load(made[0])) if self.workers else made

    def _submit(self, step: int) -> Future:
        return self.pool.submit(_make if self.workers else self.make, step)

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def _begin(make: Callable[[int], Made], parent: int) -> None:
    """The beginning of a process. Ctrl-C and a request to end reach every process of a terminal or of a job, but the
    running step still needs its batch: it is the parent that ends this one, or its death.
    """
    global _make_of_this_process
    _make_of_this_process = make
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make(step: int) -> tuple[bytes, Made]:
    """The tensors as one piece of memory, since PyTorch's own way to send them needs a file for each."""
    made = _make_of_this_process(step)
    return save(made.tensors), replace(made, tensors={})
