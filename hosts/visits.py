"""Visits to hypervisors, many at a time: threads wait for the network, and one thread alone uses the database.

A visit is a generator that reads from top to bottom. It yields each call that waits for a hypervisor and is resumed
with what that returned or raised. Only these calls run in threads; all code between two of them runs in the
caller's.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

log = logging.getLogger(__name__)
Call = Callable[[], Any]
Visit = Generator[Call, Any, None]


def alone(visit: Visit) -> None:
    """Makes one visit here and now; raises what it raises."""
    ended: Future[Any] | None = None
    while call := resumed(visit, ended):
        ended = Future()
        try:
            ended.set_result(call())
        except Exception as error:
            ended.set_exception(error)


def together(visits: Iterator[Visit], at_once: int, seconds: float) -> int:
    """Makes visits, so many at a time, and begins none after so many seconds; returns how many it began.

    The next is taken from `visits` only when there is room for it. One that fails does not keep the others from theirs.
    """
    began, until = 0, time.monotonic() + seconds
    under_way: dict[Future[Any], Visit] = {}
    with ThreadPoolExecutor(at_once) as pool:

        def go_on(visit: Visit, ended: Future[Any] | None) -> None:
            try:
                call = resumed(visit, ended)
            except Exception:
                log.exception("a visit to a hypervisor failed")
            else:
                if call:
                    under_way[pool.submit(call)] = visit

        while True:
            while len(under_way) < at_once and time.monotonic() < until and (visit := next(visits, None)):
                began += 1
                go_on(visit, None)
            if not under_way:
                return began
            for ended in wait(under_way, return_when=FIRST_COMPLETED).done:
                go_on(under_way.pop(ended), ended)


def resumed(visit: Visit, ended: "Future[Any] | None") -> Call | None:
    """The next call that a visit waits for, given how its last one ended; None when the visit is over."""
    try:
        if ended is None:
            return next(visit)
        if error := ended.exception():
            return visit.throw(error)
        return visit.send(ended.result())
    except StopIteration:
        return None
