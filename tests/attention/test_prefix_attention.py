"""One suite for every backend: forward and all gradients against a float64 oracle.

The TPU kernels run under jax's TPU interpreter on the CPU with all its traps armed (memory starts
as NaN, reads out of bounds raise, races are looked for), or on a TPU with `pytest --device`. Error
bounds: float32 at most twice the XLA reference's largest error, or 2e-6; bfloat16 at most 1.2 times
its RMS error.

Where this is less than that says: the 2e-6 of dq and dk grows with the keys and queries they are
multiples of; cotangents are divided by sqrt(D); inputs above magnitude 1 are rounded to quarters,
so that float32 rounding of huge scores is left out.
"""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import on_device
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from armd_jax import attention
from armd_jax.attention import reference, shapes, tpu, tpu_blocks
from armd_jax.hardware import device

# The other chip's kernels, and tools that drills do not run.
DRILL_WITHOUT = (
  'armd_jax/bench/attention/*.py',
  'armd_jax/attention/hopper*.py',
  'armd_jax/bench/*.py',
  'armd_jax/cli.py',
  'armd_jax/hardware/chips.py',
)
NAMES = ('out', 'dq', 'dk', 'dv')
FLOOR = 2e-6
# The smallest legal tiles, so that small cases walk over several; two spans from 256 keys on.
SMALL = (
  tpu_blocks.Blocks(rows=256, keys=256, unit_rows=128, unit_keys=128, join=2),
  tpu_blocks.Blocks(rows=128, keys=128, unit_rows=128, unit_keys=128, span=128),
)


@dataclasses.dataclass(frozen=True, eq=False)  # arrays do not compare as keys of a cache should
class Case:
  lengths: np.ndarray  # [B or 1, R, N]
  keys: int
  batch: int = 1
  heads: int = 1
  groups: int = 1
  head_dim: int = 64
  dtype: str = 'float32'
  magnitude: float = 1.0  # of the logits

  def arrays(self):
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(0)
    _, streams, rows = self.lengths.shape
    rows_shape = (self.batch, streams, rows, self.heads, self.head_dim)
    keys_shape = (self.batch, self.keys, self.groups, self.head_dim)
    q, k, v, w = (rng.normal(size=s) for s in (rows_shape, keys_shape, keys_shape, rows_shape))
    # Cotangents as small as a loss makes them: gradients of the weights are of order 1.
    w /= self.head_dim**0.5
    if self.magnitude > 1:
      # Few bits each, so that huge scores come out exact in any order of summation.
      q, k = np.round(4 * q) / 4, np.round(4 * k) / 4
    return tuple(jnp.asarray(x, self.dtype) for x in (q * self.magnitude, k, v, w))


def oracle(q, k, v, w, lengths):
  """Output and gradients in float64, written out row by row of the mask."""
  q, k, v, w = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v, w))
  repeats = q.shape[3] // k.shape[2]
  scale = q.shape[-1] ** -0.5
  keys, values = np.repeat(k, repeats, axis=2), np.repeat(v, repeats, axis=2)
  logits = np.einsum('brnhd,bkhd->bhrnk', q, keys) * scale
  visible = np.arange(k.shape[1]) < lengths[:, None, :, :, None]
  logits = np.where(visible, logits, -np.inf)
  top = logits.max(-1, keepdims=True)
  weights = np.exp(logits - np.where(np.isinf(top), 0, top))
  total = weights.sum(-1, keepdims=True)
  weights /= np.where(total == 0, 1, total)
  dweights = np.einsum('brnhd,bkhd->bhrnk', w, values)
  dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale

  def grouped(x):
    return x.reshape(*x.shape[:2], -1, repeats, x.shape[-1]).sum(3)

  return (
    np.einsum('bhrnk,bkhd->brnhd', weights, values),
    np.einsum('bhrnk,bkhd->brnhd', dlogits, keys),
    grouped(np.einsum('bhrnk,brnhd->bkhd', dlogits, q)),
    grouped(np.einsum('bhrnk,brnhd->bkhd', weights, w)),
  )


@pytest.fixture(autouse=True)
def _fresh_interpreter():
  yield
  pltpu.reset_tpu_interpret_mode_state()  # one that has raised would not run again


def _pallas_tpu(*arrays):
  return tpu.prefix_attention(*arrays, chip=device.current().chip, blocks=SMALL)


def _pallas_tpu_transposed(*arrays):
  forward = dataclasses.replace(SMALL[0], transposed=True)
  return tpu.prefix_attention(*arrays, chip=device.current().chip, blocks=(forward, SMALL[1]))


def _pallas_tpu_shipped(*arrays):
  return attention.prefix_attention(*arrays, backend='pallas_tpu')


_on_tpu = functools.partial(on_device.kernels, 'tpu', device.interpreting_tpu)

BACKENDS = {
  # On a device the products of float32 are rounded to fewer bits unless one asks.
  'reference': (reference.prefix_attention, lambda: jax.default_matmul_precision('float32')),
  'pallas_tpu': (_pallas_tpu, _on_tpu),
  'pallas_tpu_transposed': (_pallas_tpu_transposed, _on_tpu),
}


@functools.cache
def _forward_and_gradients(attend):
  def run(q, k, v, w, lengths):
    out, pullback = jax.vjp(lambda q, k, v: attend(q, k, v, lengths), q, k, v)
    return out, *pullback(w)

  # The reference runs operation by operation, so that each rounds as it is written: within one
  # program XLA leaves roundings out, as suits it shape by shape.
  return run if attend is reference.prefix_attention else jax.jit(run)


def evaluate(backend, q, k, v, w, lengths):
  """Output and gradients of a backend, as numpy arrays."""
  attend, context = backend
  with context():
    results = _forward_and_gradients(attend)(q, k, v, w, jnp.asarray(lengths))
    jax.block_until_ready(results)
  races = getattr(interpret_pallas_call, 'races', None)
  assert races is None or not races.races_found
  return tuple(np.asarray(x.astype(jnp.float32), np.float64) for x in results)


def error(found, expected, dtype):
  difference = np.abs(found - expected)
  assert not np.isnan(found).any()
  return difference.max() if dtype == 'float32' else np.sqrt(np.mean(difference**2))


@functools.lru_cache(maxsize=16)
def _expected(case):
  """The case's arrays, and of its results the reference's, the oracle's and the unit of each."""
  arrays = case.arrays()
  base = evaluate(BACKENDS['reference'], *arrays, case.lengths)
  # A gradient of a score of order 1 reaches dq as a multiple of a scaled key, dk of a query.
  units = [1, *(max(1, float(jnp.abs(x).max()) / case.head_dim**0.5) for x in arrays[1::-1]), 1]
  return arrays, base, oracle(*arrays, case.lengths), units


def check(backend, case):
  """Holds a backend to the bounds."""
  arrays, base, expected, units = _expected(case)
  found = evaluate(backend, *arrays, case.lengths)
  # An RMS error over a handful of roundings is chance: it is held to 1.2 from 256 pairs on.
  rounds_often = case.dtype != 'float32' and case.lengths.sum() >= 256
  for name, unit, a, b, c in zip(NAMES, units, found, base, expected, strict=True):
    slack = 1.2 if rounds_often else 2.0
    bound = max(FLOOR * unit, slack * error(b, c, case.dtype))
    assert error(a, c, case.dtype) <= bound, f'{name}: {error(a, c, case.dtype)} > {bound}'


def causal(num_rows, streams=1):
  end = np.arange(1, num_rows + 1, dtype=np.int32)
  return np.stack([end - stream for stream in range(streams)])[None]


def random_lengths(shape, keys, seed=0):
  return np.random.default_rng(seed).integers(0, keys + 1, shape).astype(np.int32)


def blocks_of(size, num_rows):
  """Content and query lengths of an order in blocks of `size`: each value `size` times."""
  start = np.arange(num_rows, dtype=np.int32) // size * size
  return np.stack([np.minimum(start + size, num_rows), start])[None]


def _two_streams(lengths, **options):
  # One shape for all, so that each backend compiles it once.
  return Case(np.broadcast_to(lengths, (1, 2, 301)).astype(np.int32), 301, **options)


SPECIAL = {
  'left_to_right': _two_streams(causal(301, 2)),
  'nothing_visible': _two_streams(0),
  'everything_visible': _two_streams(301),
  'some_rows_see_nothing': _two_streams(np.maximum(causal(301, 2) - 150, 0)),
  'duplicated': _two_streams(blocks_of(48, 301)),
  'not_monotone': _two_streams(random_lengths((1, 2, 301), 280)),
  'huge_logits': _two_streams(causal(301, 2), magnitude=4096),
  'smaller_than_a_tile': Case(causal(5, 2), 5, heads=2, groups=1),
  'one_key': Case(np.ones((1, 2, 140), np.int32), 1),
  'own_lengths_per_sequence': Case(random_lengths((3, 1, 200), 260), 260, batch=3),
  'grouped_bfloat16': Case(causal(256, 2), 256, heads=4, groups=2, head_dim=128, dtype='bfloat16'),
  'wide_heads': Case(causal(256), 256, head_dim=256),
}


@pytest.mark.parametrize('name', SPECIAL)
def test_reference_rounds_and_does_nothing_else(name):
  """The others are held to its errors, and it to the oracle: once per kind of rounding."""
  case = SPECIAL[name]
  _, found, expected, units = _expected(case)
  for name, unit, a, c in zip(NAMES, units, found, expected, strict=True):
    relative = float(jnp.finfo(case.dtype).eps) * np.sqrt(np.mean(c**2))
    bound = 2 * FLOOR * unit if case.dtype == 'float32' else relative
    assert error(a, c, case.dtype) <= bound, f'{name}: {error(a, c, case.dtype)} > {bound}'


# Those that have a shape of their own; of the two forward passes one will do in `make test`.
SHAPED = [name for name, case in SPECIAL.items() if case.lengths.shape != (1, 2, 301)]


@pytest.mark.parametrize(
  ('backend', 'name'),
  [('pallas_tpu', name) for name in SPECIAL]
  + [
    pytest.param(
      *('pallas_tpu_transposed', name), marks=pytest.mark.drill if name in SHAPED else ()
    )
    for name in SPECIAL
  ],
)
def test_special(backend, name):
  check(BACKENDS[backend], SPECIAL[name])


def test_shipped_for_a_wide_matrix_unit():
  wide = functools.partial(on_device.kernels, 'tpu', lambda: device.interpreting_tpu('v6e'))
  check((_pallas_tpu_shipped, wide), Case(causal(300, 2), 300, dtype='bfloat16'))


def _stairs(*arrays):
  forward = tpu_blocks.Blocks(512, 512, 256, 256, join=2, transposed=True)
  backward = dataclasses.replace(forward, transposed=False, span=512)
  assert forward.has_stairs(1)
  assert forward.stair(1) == 128
  return tpu.prefix_attention(*arrays, chip=device.current().chip, blocks=(forward, backward))


@pytest.mark.parametrize('size', [200, 300])
def test_diagonal_tile_in_which_some_keys_skip_the_mask(size):
  """The second 256 rows skip it for 128 keys, which not all of them see in blocks of 300."""
  check((_stairs, _on_tpu), Case(blocks_of(size, 512)[:, 1:], 512, dtype='bfloat16'))


def test_bfloat16_at_large_logits():
  case = Case(causal(256, 2), 256, heads=4, groups=2, head_dim=128, dtype='bfloat16', magnitude=30)
  for name in ('pallas_tpu', 'pallas_tpu_transposed'):
    check(BACKENDS[name], case)


def test_huge_logits_reach_1e4():
  q, k, _, _ = SPECIAL['huge_logits'].arrays()
  logits = np.einsum('brnhd,bkhd->bhrnk', q, k) / 8
  assert logits.max() > 1e4
  assert logits.min() < -1e4


@pytest.mark.parametrize('backend', BACKENDS)
def test_nothing_visible_is_exactly_zero(backend):
  case = SPECIAL['nothing_visible']
  for found in evaluate(BACKENDS[backend], *case.arrays(), case.lengths):
    assert (found == 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_invisible_keys_do_not_matter(backend):
  case = SPECIAL['not_monotone']
  assert case.lengths.max() <= 280
  q, k, v, w = case.arrays()
  found = evaluate(BACKENDS[backend], q, k, v, w, case.lengths)
  k, v = (x.at[:, 280:].set(1e9) for x in (k, v))
  changed = evaluate(BACKENDS[backend], q, k, v, w, case.lengths)
  for name, a, b in zip(NAMES, found, changed, strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize('backend', BACKENDS)
def test_twice_is_bit_equal(backend):
  case = SPECIAL['left_to_right']
  runs = [evaluate(BACKENDS[backend], *case.arrays(), case.lengths) for _ in range(2)]
  for a, b in zip(*runs, strict=True):
    np.testing.assert_array_equal(a, b)


# ---- named shapes ------------------------------------------------------------------------------

REPRESENTATIVE = ('train_1024_12x64', 'decode_8_of_1024_32/8x128')


def shrunk_case(shape, streams, dtype):
  """A named shape with four key tiles and one head of each group layout."""
  small = shape.shrunk(shape.keys // 256)
  copies = shape.heads // shape.groups
  return Case(small.lengths(streams), small.keys, 1, 2 * copies, 2, shape.head_dim, dtype)


def _distinct(names):
  """The first of each set of shapes that shrink to the same case."""
  found = {}
  for name in names:
    case = shrunk_case(shapes.NAMED[name], 2, 'float32')
    found.setdefault((case.lengths.shape, case.keys, case.heads, case.head_dim), name)
  return list(found.values())


DISTINCT = _distinct((*REPRESENTATIVE, *shapes.NAMED))


@pytest.mark.parametrize('name', REPRESENTATIVE)
@pytest.mark.parametrize('dtype', tpu.DTYPES)
def test_named_shape_as_shipped(name, dtype):
  check(
    (_pallas_tpu_shipped, _on_tpu),
    shrunk_case(shapes.NAMED[name], 2, dtype),
  )


def _as_run(name):
  """What of backend, dtype and streams a named shape is run with; random cases cross them all."""
  runs = [('pallas_tpu', 'bfloat16', 2), ('pallas_tpu', 'float32', 1)]
  # Another forward pass before the same backward pass; few rows, of decoding, never take it.
  case = shrunk_case(shapes.NAMED[name], 2, 'bfloat16')
  if case.heads // case.groups * case.lengths[0].size > tpu_blocks.LANES:
    runs.append(('pallas_tpu_transposed', 'bfloat16', 2))
  return [(name, *run) for run in runs]


@pytest.mark.drill
@pytest.mark.parametrize(
  ('name', 'backend', 'dtype', 'streams'), [run for name in DISTINCT for run in _as_run(name)]
)
def test_every_named_shape(name, backend, dtype, streams):
  check(BACKENDS[backend], shrunk_case(shapes.NAMED[name], streams, dtype))


# ---- random shapes -----------------------------------------------------------------------------


@st.composite
def cases(draw):
  streams, rows, keys = (
    draw(st.integers(1, 2)),
    draw(st.integers(1, 300)),
    draw(st.integers(1, 300)),
  )
  batch = draw(st.integers(1, 2))
  groups, copies = draw(st.integers(1, 2)), draw(st.integers(1, 3))
  shape = (draw(st.sampled_from([1, batch])), streams, rows)
  lengths = random_lengths(shape, keys, draw(st.integers(0, 99)))
  dtype = draw(st.sampled_from(tpu.DTYPES))
  magnitude = draw(st.sampled_from([0.25, 1.0, 16.0]))
  if draw(st.booleans()):
    lengths = np.sort(lengths, axis=-1)
  return Case(
    lengths=lengths,
    keys=keys,
    batch=batch,
    heads=groups * copies,
    groups=groups,
    head_dim=draw(st.sampled_from(tpu.HEAD_DIMS)),
    dtype=dtype,
    magnitude=magnitude,
  )


def _random(examples):
  return functools.partial(
    hypothesis.settings,
    max_examples=examples,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
  )()


@_random(2)
@hypothesis.given(case=cases())
def test_random(case):
  check(BACKENDS['pallas_tpu'], case)


@pytest.mark.drill
@_random(30)
@hypothesis.given(case=cases(), transposed=st.booleans())
def test_many_random(case, transposed):
  check(BACKENDS['pallas_tpu_transposed' if transposed else 'pallas_tpu'], case)
