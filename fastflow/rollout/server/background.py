"""Run an asyncio loop in a thread of its own, so that sampling goes on while the trainer works."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from fastflow.models.pulse import PULSE

ENDING_SECONDS = 10.0
LOOK_SECONDS = 0.1

Result = TypeVar("Result")


class Work(Generic[Result]):
    """A coroutine on the loop, seen from another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Result]):
        self._loop = loop
        self._outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()
        loop.call_soon_threadsafe(self._begin, coroutine)

    def done_within(self, seconds: float) -> bool:
        """Wait at most that long. Returns whether the coroutine has ended."""
        PULSE.attend()
        return bool(concurrent.futures.wait([self._outcome], seconds).done)

    def result(self) -> Result:
        """Wait for what the coroutine returns or raises. Ctrl-C meanwhile cancels it."""
        try:
            while not self.done_within(LOOK_SECONDS):
                pass
            return self._outcome.result()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the coroutine, and wait until it has cleaned up."""
        self._loop.call_soon_threadsafe(lambda: self._task.cancel())  # _begin runs before it
        self.done_within(ENDING_SECONDS)

    def _begin(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Result]) -> None:
        if task.cancelled():
            self._outcome.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(task.result())


class BackgroundLoop:
    """Runs until `close`. The thread does not keep the program alive."""

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Work[Result]:
        return Work(self._loop, coroutine)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Wait for what the coroutine returns or raises."""
        return self.start(coroutine).result()

    def close(self) -> None:
        """Cancel what still runs, and end the thread."""
        if self._loop.is_closed():
            return
        self.start(_end_everything()).done_within(ENDING_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ENDING_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _end_everything() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()  # threads that looked up host names
