"""Work in a thread that ends with the program, whatever it waits for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def in_thread(act: Callable) -> Future:
    """What `act()` will return or raise: `.result(seconds)` waits for it. (A pool of concurrent.futures would be waited
    for at the program's end.)
    """
    future = Future()

    def work() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
