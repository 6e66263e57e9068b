"""One thread that does one job after the other, so that collectives start in the same order on every rank."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from thrifty.spec.errors import ThriftyError


class Pending:
    """A job that was started."""

    def __init__(self) -> None:
        self._done: Future[None] = Future()

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done.done()

    def wait(self) -> None:
        """Returns when the job has ended.

        Raises:
            ThriftyError: what went wrong, here or on another rank.
        """
        self._done.result()

    def then(self, call: Callable[[BaseException | None], None]) -> None:
        """Calls with the error, or None, once the job has ended, on the thread that ends it."""
        self._done.add_done_callback(lambda done: call(done.exception()))


class Fifo:
    """The thread. After a job that fails no other is run: all end with that error."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Pending] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closed = False
        # A daemon: a rank that is to end does not wait for a collective that others have left.
        self._thread = threading.Thread(target=self._serve, name="exchange", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> Pending:
        """Queues a job.

        Raises:
            ThriftyError: it is closed.
        """
        if self._closed:
            raise ThriftyError("the exchange is closed", where="exchange")
        pending = Pending()
        self._jobs.put((job, pending))
        return pending

    def close(self) -> None:
        """Ends the thread behind the jobs that are queued; twice is once."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, pending = item
            if self._error is None:
                try:
                    job()
                except BaseException as error:  # handed to whoever waits, whatever it is
                    self._error = error
            if self._error is None:
                pending._done.set_result(None)
            else:
                pending._done.set_exception(self._error)
            del item, job, pending  # tensors of a finished job are not kept until the next one
