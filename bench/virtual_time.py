"""An event loop whose time moves only when nothing is left to do: hours of the real daemon in minutes, the same each time."""

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from unittest.mock import patch

import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.heartbeats import LOOK_S, Pinger
from rpi_daemon.history.writer import Job, Writer

log = structlog.get_logger("rpi_daemon")

T = TypeVar("T")
START_MONO_NS = 1_000 * NS_PER_S
START_UTC_NS = 1_700_000_000 * NS_PER_S


class VirtualClock:
    """The daemon's clock, the boards' and the devices': one time for all. The wall clock may be set apart from it."""

    def __init__(self) -> None:
        self._mono_ns = START_MONO_NS
        self.utc_offset_ns = START_UTC_NS - START_MONO_NS

    def mono_ns(self) -> int:
        return self._mono_ns

    def utc_ns(self) -> int:
        return self._mono_ns + self.utc_offset_ns

    def seconds(self) -> float:
        """As a device's own clock."""
        return self._mono_ns / NS_PER_S

    def advance_to(self, mono_ns: int) -> None:
        """Never back."""
        self._mono_ns = max(self._mono_ns, mono_ns)


class _Selector(selectors.SelectSelector):
    """Sockets of this process answer each other at once: nobody is waited for, the time of the next timer comes instead."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.advances = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None or timeout <= 0.0:
            return ready if ready or timeout is not None else super().select(None)
        self.advances += 1
        self._clock.advance_to(self._clock.mono_ns() + max(1, round(timeout * NS_PER_S)))
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs on a `VirtualClock`. Signals are not taken from the process: `deliver` hands them to who asked for them."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_Selector(clock))
        self.clock = clock
        self.defects: list[str] = []  # exceptions that nobody took
        self._signals: dict[int, Callable[[], object]] = {}
        self.set_exception_handler(self._defect)

    def time(self) -> float:
        return self.clock.seconds()

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        self._signals[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self._signals.pop(sig, None) is not None

    def forget_signals(self) -> None:
        """Whoever asked for them is gone."""
        self._signals.clear()

    def deliver(self, sig: int) -> None:
        """As if the process had been sent this signal; nobody takes it where none has asked for it."""
        if (handle := self._signals.get(sig)) is not None:
            handle()

    def _defect(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error = context.get("exception")
        self.defects.append(f"{context.get('message')}: {error!r}")


def _submit(_: ThreadPoolExecutor, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
    done: Future[T] = Future()
    try:
        done.set_result(work(*args, **kwargs))
    except Exception as error:  # noqa: BLE001  whoever awaits it gets it
        done.set_exception(error)
    return done


def _put(_: Writer, job: Job) -> None:
    try:
        job()
    except Exception as error:  # noqa: BLE001  as the writer's thread does
        log.error("history.defect", error=repr(error))


def _start(pinger: Pinger) -> None:
    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            pinger.look()

    pinger._heartbeats._times = lambda _: None  # of a processor's time nothing is known here
    _looking[pinger] = asyncio.get_running_loop().create_task(look())


def _stop(pinger: Pinger) -> None:
    if (task := _looking.pop(pinger, None)) is not None:  # one that could not even begin has none
        task.cancel()


_looking: dict[Pinger, "asyncio.Task[None]"] = {}


@contextlib.contextmanager
def without_threads() -> Iterator[None]:
    """What the daemon gives to a thread is done at once: a thread's own time would be another one each time."""
    with (
        patch.object(ThreadPoolExecutor, "submit", _submit),
        patch.object(Writer, "put", _put),
        patch.multiple(Pinger, start=_start, stop=_stop),
    ):
        yield


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]], clock: VirtualClock) -> T:
    """Run `main` to its end on a loop of its own."""
    loop = VirtualLoop(clock)
    asyncio.set_event_loop(loop)
    try:
        with without_threads():
            return loop.run_until_complete(main(loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)
