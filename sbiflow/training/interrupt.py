"""Ctrl-C between steps only: a step that is torn apart could not be resumed to the same result."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C or SIGTERM is only noted (ask the yielded function); a second one interrupts.

    SIGTERM is what a batch system sends some time before it kills. Where Ctrl-C is ignored (a job in the background)
    it stays ignored, and a handler that a program has of its own for SIGTERM stays; in other threads no signal
    arrives. With `patient` a second signal is noted as the first one is: torchrun passes on to its processes a signal
    that the batch system has sent them already.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    noted = [signal.SIGINT] if before[signal.SIGINT] != signal.SIG_IGN else []
    noted += [signal.SIGTERM] if before[signal.SIGTERM] == signal.SIG_DFL else []
    if threading.current_thread() is not threading.main_thread():
        noted = []
    requested = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested and not patient:
            raise KeyboardInterrupt
        requested = True

    for number in noted:
        signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        for number in noted:
            handler = before[number]  # None: set by other than Python
            signal.signal(number, signal.default_int_handler if handler is None else handler)
