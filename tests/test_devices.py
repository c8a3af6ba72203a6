"""Several devices in one process: the crossing becomes `pure_callback`, the answers stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import backsolve
from backsolve import CSR, lapack, superlu

DEVICES, BATCH, N = 4, 8, 5
INDICES = np.array([0, 1, 4, 1, 2, 0, 2, 3, 3, 1, 4])  # asymmetric
INDPTR = np.array([0, 3, 5, 8, 9, 11])
ROWS = np.repeat(np.arange(N), np.diff(INDPTR))
MASK = np.zeros((N, N))
MASK[ROWS, INDICES] = 1

# --------------------------------------------------------------------------------------------
# What runs in the other process. A problem is `solve(a, b)` and the same in plain JAX.


def _sparse(a, b):
    return superlu.spsolve(CSR(a[ROWS, INDICES], INDICES, INDPTR, (N, N)), b)


def _newton(a, b):
    y = np.zeros(N)
    for _ in range(30):
        y = y - (y + y**3 - b) / (1 + 3 * y**2)
    return np.linalg.solve(a, y)


def _cubic(x, a, b):
    y = a @ x
    return y + y**3 - b


def _cardano(a, b):
    return jnp.linalg.solve(a, 2 / np.sqrt(3) * jnp.sinh(jnp.arcsinh(b * np.sqrt(27) / 2) / 3))


_root = backsolve.implicit(_newton, _cubic, like=jax.ShapeDtypeStruct((N,), float))

PROBLEMS = {
    "lapack": (lapack.solve, jnp.linalg.solve),
    "superlu": (_sparse, lambda a, b: jnp.linalg.solve(MASK * a, b)),
    "implicit": (_root, _cardano),
}


def operands():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((BATCH, N, N)) + 4 * np.eye(N)
    return jnp.asarray(a), jnp.asarray(rng.standard_normal((BATCH, N)))


def sharded(*arrays):
    assert len(jax.devices()) == DEVICES
    mesh = jax.make_mesh((DEVICES,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    return mesh, [jax.device_put(x, NamedSharding(mesh, P("i"))) for x in arrays]


def error(ours, theirs):
    """Return the largest relative error of all leaves."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    pairs = [(np.asarray(one), np.asarray(other)) for one, other in pairs]
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs)


def total(solve):
    return lambda a, b: jnp.sum(jnp.sin(jax.vmap(solve)(a, b)) ** 2)


def every(function):
    """Return a function's results for all problems, in one process."""
    return [function(*problem) for problem in PROBLEMS.values()]


def jit_of_sharded_operands():
    return every(_jit_of_sharded_operands)


def _jit_of_sharded_operands(solve, reference):
    a, b = operands()
    _, (a_shards, b_shards) = sharded(a, b)
    with backsolve.record() as log:
        ours = log.wait(jax.jit(jax.vmap(solve))(a_shards, b_shards))
    gradient = jax.jit(jax.value_and_grad(total(solve), (0, 1)))(a_shards, b_shards)
    return [r.lanes for r in log], max(
        error(ours, jax.vmap(reference)(a, b)),
        error(gradient, jax.value_and_grad(total(reference), (0, 1))(a, b)),
    )


def solves_by_shard():
    return every(_solves_by_shard)


def _solves_by_shard(solve, reference):
    a, b = operands()
    mesh, shards = sharded(a, b)

    def value(a, b):
        return jax.vmap(solve)(a, b)

    def loss(a, b):
        return jax.lax.psum(total(solve)(a, b), "i")

    by_shard = {"mesh": mesh, "in_specs": (P("i"), P("i"))}
    value = jax.jit(jax.shard_map(value, out_specs=P("i"), **by_shard))
    gradient = jax.jit(jax.value_and_grad(jax.shard_map(loss, out_specs=P(), **by_shard), (0, 1)))
    with backsolve.record() as log:
        ours = log.wait(value(*shards))
    lanes = [r.lanes for r in log]
    return lanes, max(
        error(ours, jax.vmap(reference)(a, b)),
        error(gradient(*shards), jax.value_and_grad(total(reference), (0, 1))(a, b)),
    )


def shared_matrix_by_shard():
    """Differentiate in a matrix that all shards share: its cotangents must be added up."""
    a, b = operands()
    mesh, (b_shards,) = sharded(b)

    def loss(a, b):
        return jax.lax.psum(jnp.sum(jax.vmap(lapack.solve, (None, 0))(a, b) ** 2), "i")

    f = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
    ours = jax.jit(jax.grad(f, (0, 1)))(a[0], b_shards)
    reference = lambda a, b: jnp.sum(jax.vmap(jnp.linalg.solve, (None, 0))(a, b) ** 2)  # noqa: E731
    return error(ours, jax.grad(reference, (0, 1))(a[0], b))


def on_another_device(jit):
    """Solve and differentiate where the operands are, and go on with them."""
    device = jax.devices()[2]
    a, b = (jax.device_put(x[0], device) for x in operands())

    def loss(solve):
        return lambda a, b: jnp.sum(b * solve(a, solve(a, b) + b))

    both = jax.value_and_grad(loss(lapack.solve), (0, 1))
    result = (jax.jit(both) if jit else both)(a, b)
    b + result[1][1]  # fails where results are tied to some other device
    return error(result, jax.value_and_grad(loss(jnp.linalg.solve), (0, 1))(a, b))


# --------------------------------------------------------------------------------------------

XLA = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}


def test_jit_of_sharded_operands_solves_once_and_right(in_fresh_process):
    for lanes, worst in in_fresh_process(jit_of_sharded_operands, **XLA):
        assert lanes == [BATCH]  # not once on every device
        assert worst < 1e-10


@pytest.mark.jax_versions
def test_shard_map_solves_every_shard_once_and_right(in_fresh_process):
    for lanes, worst in in_fresh_process(solves_by_shard, **XLA):
        assert lanes == DEVICES * [BATCH // DEVICES]
        assert worst < 1e-10


@pytest.mark.jax_versions
def test_a_matrix_shared_by_all_shards_has_one_gradient(in_fresh_process):
    assert in_fresh_process(shared_matrix_by_shard, **XLA) < 1e-10


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.jax_versions
def test_operands_on_another_device_mix_with_results(jit, in_fresh_process):
    assert in_fresh_process(on_another_device, jit, **XLA) < 1e-10
