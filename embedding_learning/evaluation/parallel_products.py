"""Matrix products in several Python threads, each product in one thread of BLAS.

So the steps after a product, such as comparing and counting in numpy, use all cores too, while the
product is still in the cache of its core.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

Task = TypeVar("Task")
Run = Callable[[Callable[[Task], None], Iterable[Task]], None]

# Of fewer distances, threads would mostly wait for Python's lock.
_MANY = 2**22
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def blas_threads(distances: int) -> Iterator[Run]:
    """Yields a function that calls `work` with each task, in as many threads as BLAS would use.

    If few `distances` are computed in total, the tasks are done one after the other. A task is
    taken from the iterator only when a thread is free. If a call fails, no more tasks are started,
    and its exception is raised.

    BLAS has one number of threads for the whole process, so a second thread that enters waits.
    """
    if distances < _MANY:
        yield run_in_order
        return
    with _ONE_AT_A_TIME:
        blas = _blas_libraries()
        count = max((library["num_threads"] for library in blas.info()), default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(count) as pool:

            def run(work: Callable[[Task], None], tasks: Iterable[Task]) -> None:
                waiting = _Waiting(tasks)
                workers = [pool.submit(waiting.do_all, work) for _ in range(count)]
                try:
                    for worker in workers:
                        worker.result()
                finally:
                    waiting.has_ended = True

            yield run


def run_in_order(work: Callable[[Task], None], tasks: Iterable[Task]) -> None:
    """Calls `work` with one task after the other, in this thread."""
    for task in tasks:
        work(task)


class _Waiting:
    """The tasks that have not been started, shared by the threads that take them."""

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()
        self.has_ended = False

    def do_all(self, work: Callable[[Any], None]) -> None:
        """Calls `work` with one task after another, until none is left or a call has failed."""
        try:
            while True:
                with self._lock:
                    task = None if self.has_ended else next(self._tasks, None)
                if task is None:
                    return
                work(task)
        finally:
            self.has_ended = True


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the products of all rows of two arrays in C order, (b, d) and (c, d): (b, c).

    Both are float32 or both float64.
    """
    product: np.ndarray = np.empty((len(left), len(right)), left.dtype)
    number = ctypes.c_float if left.dtype == np.float32 else ctypes.c_double
    # Fortran reads an array in C order as its transpose.
    columns, rows, inner = map(ctypes.c_int, (len(right), len(left), left.shape[1]))
    _gemm("sgemm" if left.dtype == np.float32 else "dgemm")(
        b"T", b"N", ctypes.byref(columns), ctypes.byref(rows), ctypes.byref(inner),
        ctypes.byref(number(1)), right.ctypes.data, ctypes.byref(inner),
        left.ctypes.data, ctypes.byref(inner),
        ctypes.byref(number(0)), product.ctypes.data, ctypes.byref(columns),
    )  # fmt: skip
    return product


# scipy's BLAS is newer than that of the numpy which MXNet asks for. On processors that the old one
# does not know, such as Emerald Rapids, it is four times as fast. It is imported only where it
# computes, since that takes time.
@functools.cache
def _blas_libraries() -> Any:
    """Returns threadpoolctl's control of the BLAS libraries of this process."""
    import scipy.linalg.cython_blas  # noqa: F401  loads the library
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@functools.cache
def _gemm(name: str) -> Callable[..., None]:
    """Returns a function of scipy's BLAS that lets other threads run while it computes.

    Those of scipy.linalg.blas do not. scipy.linalg.cython_blas offers the same ones to compiled
    code, as pointers.
    """
    from scipy.linalg import cython_blas

    capsule = ctypes.py_object(cython_blas.__pyx_capi__[name])
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, pointer_of.restype = ctypes.c_char_p, ctypes.c_void_p
    pointer = pointer_of(capsule, ctypes.c_char_p(name_of(capsule)))
    texts, pointers = [ctypes.c_char_p] * 2, [ctypes.c_void_p] * 11
    return ctypes.CFUNCTYPE(None, *texts, *pointers)(pointer)
