"""The denoiser sees all but masked values and padding, and noise where its family reads it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models
from armd_jax.models.denoiser import MASK

TEXT = jax.random.randint(jax.random.key(0), (2, 16), 0, tiny.VOCAB).at[:, ::3].set(MASK)


@functools.cache
def network():
  # Larger parameters would saturate the attention.
  model, params = tiny.init(tiny.model_config(family='mdlm', num_layers=1), scale=1.0)

  def enlarge(path, x):  # gates and shifts start at zero
    if 'modulation' in jax.tree_util.keystr(path):
      return 0.1 * jax.random.normal(jax.random.key(len(path)), x.shape)
    return x

  params = jax.tree_util.tree_map_with_path(enlarge, params)

  @jax.jit
  def run(text, noise=None, length=None):
    return model.apply({'params': params}, text, noise, None, length)

  return run


@pytest.mark.parametrize('noise', [None, jnp.array([0.5, 3.0])])
def test_every_row_sees_every_token(noise):
  run = network()
  text = np.asarray(TEXT)
  base = np.asarray(run(text, noise))
  for n in range(16):
    changed = text.copy()
    changed[:, n] = np.where(text[:, n] == MASK, 0, (text[:, n] + 1) % tiny.VOCAB)
    assert (np.abs(np.asarray(run(changed, noise)) - base).max(-1) > 1e-5).all(), n


def test_padding_is_never_seen():
  run, length = network(), jnp.array([16, 9])
  base = run(TEXT, length=length)
  changed = TEXT.at[1, 9:].set(3)
  np.testing.assert_array_equal(run(changed, length=length)[1, :9], base[1, :9])
  assert (run(TEXT.at[0, 9:].set(3), length=length)[0, :9] != base[0, :9]).any()
  np.testing.assert_allclose(base[1:, :9], run(TEXT[1:, :9]), atol=1e-5)


def shapes(family):
  """Of all parameters, by name."""
  model = models.build(tiny.model_config(family=family, num_layers=2), tiny.VOCAB)
  leaves = jax.tree_util.tree_leaves_with_path(
    jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
  )
  return {jax.tree_util.keystr(path): x.shape for path, x in leaves}


def test_noise_is_an_input_where_it_is_given():
  """To its own sequence, in all digits; where none is given it is noise 0."""
  run = network()
  a, b = run(TEXT, jnp.array([0.1, 0.1])), run(TEXT, jnp.array([0.1, 5.0]))
  np.testing.assert_array_equal(a[0], b[0])
  assert np.abs(a[1] - b[1]).max() > 1e-2
  np.testing.assert_array_equal(run(TEXT, jnp.zeros(1)), run(TEXT))


def test_a_conditioned_layer_starts_as_the_identity():
  config = tiny.model_config(family='sedd', num_layers=1)
  model, params = tiny.init(config, scale=1.0)
  hidden = jax.jit(model.apply)({'params': params}, TEXT, jnp.zeros(2))
  vocabulary = params['vocabulary']
  rows = jnp.where(
    (TEXT == MASK)[..., None], vocabulary['mask'], vocabulary['embedding'][jnp.maximum(TEXT, 0)]
  )
  expected = rows / jnp.sqrt(jnp.mean(rows**2, -1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(hidden, expected, rtol=1e-4)


def test_the_layers_are_those_of_the_ar_model():
  """Same parameters in the same shapes, but for BOS, the mask, and what the noise modulates."""
  noise = ('noise', 'modulation')
  own = {k.replace('mask', 'bos'): v for k, v in shapes('mdlm').items()}
  assert {k: v for k, v in own.items() if not any(x in k for x in noise)} == shapes('ar')
  assert shapes('mdlm') == shapes('radd') == shapes('sedd') == shapes('d3pm')
