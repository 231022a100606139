"""Calls into optimizers of other libraries that leave no trace, and give the same bits everywhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, linear algebra runs on one thread: its last bits depend on the number of threads.

    Warnings, which are meant for the library's own users, are not shown. NumPy's global random generator is as it was
    when the call returns: pycma draws from it, to check itself.
    """
    state = np.random.get_state()
    try:
        with warnings.catch_warnings(), _threads().limit(limits=1):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)
