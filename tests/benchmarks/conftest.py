"""Side-by-side timing: candidate and baseline in turn, in one process; ratios of medians."""

import os
import statistics
import time

import jax
import pytest

jax.config.update("jax_enable_x64", True)

ROWS = []


def pytest_configure():
    """Refuse to time a threaded BLAS: it must be pinned before NumPy is imported."""
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise pytest.UsageError("set OPENBLAS_NUM_THREADS=1, as `make bench` does")


@pytest.fixture
def side_by_side(benchmark):
    """Return `measure(what, budget, baseline, candidate, ...)`.

    Blocks of calls alternate, so that a noisy machine disturbs both alike. The candidate is also
    run by pytest-benchmark, for its table.
    """

    def measure(what, budget, *, baseline, candidate, block=1, rounds=15, setup=None, difference=0):
        """Time both; `difference=1e6` reports candidate − baseline in µs instead of the ratio."""
        setup = setup or (lambda: None)
        functions = (baseline, candidate)
        times = ([], [])
        for function in functions * 2:  # compile and warm up
            setup()
            jax.block_until_ready(function())
        for _ in range(rounds):
            for function, samples in zip(functions, times, strict=True):
                setup()
                start = time.perf_counter()
                for _ in range(block):
                    jax.block_until_ready(function())
                samples.append((time.perf_counter() - start) / block)
        base, cand = (statistics.median(samples) for samples in times)
        result = (cand - base) * difference if difference else cand / base
        ROWS.append((what, base, cand, result, budget, "µs" if difference else "×"))
        benchmark.extra_info.update(baseline=base, candidate=cand, result=result, budget=budget)
        benchmark.pedantic(
            lambda: jax.block_until_ready(candidate()), setup=setup, rounds=3, iterations=1
        )
        return result

    return measure


def pytest_terminal_summary(terminalreporter):
    """Print the ratios beside their budgets."""
    if not ROWS:
        return
    terminalreporter.section("budgets")
    width = max(len(row[0]) for row in ROWS)
    for what, base, cand, result, budget, unit in ROWS:
        verdict = "" if result <= budget else "   OVER"
        terminalreporter.write_line(
            f"{what:<{width}}  baseline {base * 1e3:9.3f} ms  ours {cand * 1e3:9.3f} ms  "
            f"{result:8.2f} {unit} (budget {budget:g}){verdict}"
        )
