"""Memory that dead arrays leave is used again, and that of living ones never."""

import threading

import numpy as np
import pytest

import backsolve
from backsolve.adjoint.buffers import Buffers, buffers
from backsolve.adjoint.store import store

N = 400  # a matrix has 1.2 MiB


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_are_equal_and_in_the_order_asked_for(order):
    for array in (np.arange(N * N, dtype=float).reshape(N, N), np.arange(5.0), np.ones((0, 3))):
        for given in (array, array.T):
            copy = Buffers().copy(given, order)
            assert np.array_equal(copy, given) and not np.shares_memory(copy, given)
            assert copy.flags.writeable and copy.flags[f"{order}_CONTIGUOUS"]
            assert copy.flags.aligned


def test_memory_goes_to_the_next_array_of_its_size_and_only_when_all_views_are_dead():
    pool, array = Buffers(), np.ones((N, N))
    first = pool.copy(array)
    where, view = address(first), first.T[1:]
    del first
    second = pool.copy(2 * array, "F")
    assert address(second) != where
    assert (view == 1).all()
    del view
    assert address(pool.copy(np.ones((N, N + 1)))) != where
    third = pool.copy(3 * array.ravel())
    assert address(third) == where
    assert (second == 2).all() and (third == 3).all()


def test_little_is_kept_idle():
    pool = Buffers()
    many = [pool.copy(np.full((N, N), k)) for k in range(20)]
    places = {address(array) for array in many}
    assert len(places) == 20
    del many
    assert len(pool._idle) == 2
    pool.clear()
    assert not pool._idle
    large = pool.copy(np.broadcast_to(1.0, (1 << 24) + 1))  # 128 MiB and a bit
    del large
    assert not pool._idle


def test_a_loop_of_solves_goes_round_in_the_same_memory():
    store.clear()
    rng, b = np.random.default_rng(0), np.ones(N)
    seen = set()
    for _ in range(12):
        A = rng.standard_normal((N, N)) + N * np.eye(N)
        x = backsolve.lapack.solve(A, b)
        assert np.linalg.norm(A @ x - b) <= 1e-12 * np.linalg.norm(b)
        (entry,) = store._entries.values()
        seen |= {address(entry.operands[0]), address(entry.state.parts[0])}
        del entry
        store._evict(next(iter(store._entries.values())))
    assert len(seen) == 2
    store.clear()
    assert not buffers._idle


def test_threads_never_get_the_same_memory():
    pool, wrong = Buffers(), []

    def work(number):
        for k in range(300):
            value = 1000.0 * number + k
            copy = pool.copy(np.broadcast_to(value, (N, N)))
            if not (copy == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
