"""Generation orders: which text position each slot holds, and which slots are predicted together.

Everything the model may or may not see follows from one object. A *slot* is an index in generation
order. `position[n]` is the slot's place in the text (1..N, BOS has 0) and `block[n]` its block: the
slots of one block are predicted together, from earlier blocks only (paper section 2: tokens with
equal masking time form one block). Arrays are `[B, N]`, or `[1, N]` when all sequences share an
order. Every function here runs under `jit`; those that draw take an explicit key per sequence.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@flax.struct.dataclass
class GenerationOrder:
  """The position of each slot in the text, and the block that it is predicted with.

  Attributes:
    position_BxN: int32, text position of each slot, a permutation of 1..N in every row.
    block_BxN: int32, non-decreasing along N; labels may skip numbers, only their order counts.
  """

  position_BxN: Array
  block_BxN: Array

  @property
  def num_slots(self) -> int:
    return self.position_BxN.shape[-1]


def block_bounds(block_BxN: Array) -> tuple[Array, Array]:
  """How many slots are in earlier blocks, and in the same or earlier ones (paper section 3).

  These are the prefix lengths of the strictly causal mask M^sc and of the causal mask M^c.

  Args:
    block_BxN: int32, block of each slot, non-decreasing along N.
  Returns:
    start_BxN, end_BxN: int32, `start[n]` slots before the block of slot n, `end[n]` up to its end.

  Examples:
    >>> start, end = block_bounds(jnp.array([[1, 2, 2, 3]]))
    >>> start.tolist(), end.tolist()
    ([[0, 1, 1, 3]], [[1, 3, 3, 4]])
  """
  num_slots = block_BxN.shape[-1]
  slot_N = jnp.arange(num_slots, dtype=jnp.int32)
  changes_BxN = block_BxN[:, 1:] != block_BxN[:, :-1]
  first_BxN = jnp.pad(changes_BxN, ((0, 0), (1, 0)), constant_values=True)
  last_BxN = jnp.pad(changes_BxN, ((0, 0), (0, 1)), constant_values=True)
  # A block begins at the last change so far; its end is found likewise, from the last slot on.
  start_BxN = jax.lax.cummax(jnp.where(first_BxN, slot_N, 0), axis=1)
  end_BxN = jax.lax.cummin(jnp.where(last_BxN, slot_N + 1, num_slots), axis=1, reverse=True)
  return start_BxN, end_BxN


def to_generation(text_BxN: Array, order: GenerationOrder) -> Array:
  """Reorders per-position values (text order) into slots (generation order)."""
  index_BxN = jnp.broadcast_to(order.position_BxN - 1, text_BxN.shape)
  return jnp.take_along_axis(text_BxN, index_BxN, axis=1)


def to_text(slots_BxN: Array, order: GenerationOrder) -> Array:
  """Reorders per-slot values (generation order) into text order; inverse of `to_generation`."""
  # Sorting a permutation gives its inverse.
  index_BxN = jnp.broadcast_to(jnp.argsort(order.position_BxN, axis=1), slots_BxN.shape)
  return jnp.take_along_axis(slots_BxN, index_BxN, axis=1)


def one_by_one(order: GenerationOrder) -> GenerationOrder:
  """The same slots, each in a block of its own: the sequential reference of a parallel order."""
  slot_N = jnp.arange(1, order.num_slots + 1, dtype=jnp.int32)
  # Flax declares no types of what its dataclasses have in addition.
  return order.replace(block_BxN=jnp.broadcast_to(slot_N, order.position_BxN.shape))


def left_to_right(num_slots: int) -> GenerationOrder:
  """Singletons in text order, shape [1, N]: with it ARMD is an auto-regressive model."""
  slot_1xN = jnp.arange(1, num_slots + 1, dtype=jnp.int32)[None]
  return GenerationOrder(slot_1xN, slot_1xN)


def _singletons(position_BxN: Array) -> GenerationOrder:
  return one_by_one(GenerationOrder(position_BxN.astype(jnp.int32), position_BxN))


def uniform(keys_B: Array, num_slots: int) -> GenerationOrder:
  """Uniformly random singletons, one permutation per key: an any-order model's orders."""
  return _singletons(jax.vmap(lambda key: jax.random.permutation(key, num_slots) + 1)(keys_B))


def shuffled(
  keys_B: Array, num_slots: int, num_shuffled: Array | int, mode: str
) -> GenerationOrder:
  """`num_shuffled` tokens permuted among left-to-right singletons (paper section 5).

  Args:
    keys_B: one key per sequence.
    num_slots: N.
    num_shuffled: int32 scalar k, may be traced; 0 and 1 leave the text order.
    mode: 'scatter' permutes k slots chosen anywhere, 'window' k neighbouring ones (our choice).
  Raises:
    ValueError: for another mode.
  """
  if mode not in ('scatter', 'window'):
    raise ValueError(f"perm_mode is {mode!r}; write 'scatter' or 'window'")
  slot_N = jnp.arange(num_slots)
  # k may be traced, so that k entries are a mask over all N.
  chosen_N = slot_N < num_shuffled

  def positions(key: Array) -> Array:
    key, start_key = jax.random.split(key)
    # The first k entries are a random k-subset of the slots, in random order.
    drawn_N = jax.random.permutation(key, num_slots)
    if mode == 'window':
      start = jax.random.randint(start_key, (), 0, num_slots - num_shuffled + 1)
      # Ranks of the first k draws among themselves, moved into the window.
      below_NxN = (drawn_N[None, :] < drawn_N[:, None]) & chosen_N[None, :]
      drawn_N = start + jnp.sum(below_NxN, axis=1)
    # The chosen slots in text order receive the draws in random order. Entries that were not chosen
    # point past the end, where nothing is written.
    target_N = jnp.sort(jnp.where(chosen_N, drawn_N, num_slots))
    return slot_N.at[target_N].set(jnp.where(chosen_N, drawn_N, 0), mode='drop') + 1

  return _singletons(jax.vmap(positions)(keys_B))


def progressive_budget(step: Array | int, ar_steps: int, perm_steps: int, rho: int) -> Array:
  """How many tokens are shuffled at a training step (paper section 5; the ramp is our choice).

  `k(i) = 0` while `i < ar_steps`, then `1 + floor((rho-1) (i-ar_steps) / (perm_steps-ar_steps))`
  until `perm_steps`, and rho from there on.

  Args:
    step: int32 scalar i, the optimizer step, may be traced.
    ar_steps: i_AR, pure left-to-right before it.
    perm_steps: i_perm, from here on k = rho.
    rho: the permutation budget.

  Examples:
    >>> [int(progressive_budget(i, 9000, 48000, 32)) for i in (8999, 9000, 28500, 48000)]
    [0, 1, 16, 32]
  """
  ramp_steps = max(perm_steps - ar_steps, 1)
  # Counted on the host, where the products of long ramps and large budgets have 64 bits: k is the
  # number of tokens whose turn has come, at i - ar_steps >= ceil((k-1) ramp / (rho-1)).
  turn_K = -(-np.arange(rho, dtype=np.int64) * ramp_steps // max(rho - 1, 1))
  since = jnp.clip(step - ar_steps, 0, ramp_steps)
  ramp = jnp.sum(since >= jnp.asarray(turn_K, jnp.int32))
  return jnp.where(step < ar_steps, 0, jnp.where(step < perm_steps, ramp, rho))


def masking_blocks(keys_B: Array, num_slots: int, num_steps: int, schedule: str) -> GenerationOrder:
  """Random blocks of a `num_steps`-step masking process (paper section 2, eqs. 1-2).

  Token j is masked at step tau(j), `P(tau <= t) = 1 - alpha(t/T)`; slots are sorted by tau
  descending and equal tau form a block, so the weight-1 loss over these orders is an unbiased
  estimate of the T-step masked-diffusion bound.

  Args:
    keys_B: one key per sequence.
    num_slots: N.
    num_steps: T.
    schedule: 'linear', alpha(s) = 1 - s; or 'cosine', alpha(s) = 1 - cos(pi/2 (1 - s)) (MD4).
  Raises:
    ValueError: for another schedule.
  """
  inverse = {  # the time s at which 1 - alpha(s) = u
    'linear': lambda u: u,
    'cosine': lambda u: 1 - 2 / jnp.pi * jnp.arccos(u),
  }
  if schedule not in inverse:
    raise ValueError(f"schedule is {schedule!r}; write 'linear' or 'cosine'")
  # tau by inverting its distribution: step t masks tokens whose time is in ((t - 1) / T, t / T].
  # The clip is for u = 0 and for the rounding of arccos.
  u_BxN = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)
  tau_BxN = jnp.clip(jnp.ceil(num_steps * inverse[schedule](u_BxN)), 1, num_steps)
  # Reverse time: what was masked last is generated first.
  block_BxN = (num_steps + 1 - tau_BxN).astype(jnp.int32)
  slot_BxN = jnp.argsort(block_BxN, axis=1, stable=True)
  block_BxN = jnp.take_along_axis(block_BxN, slot_BxN, axis=1)
  return GenerationOrder((slot_BxN + 1).astype(jnp.int32), block_BxN)


def given_first(given_BxN: Array, length_B: Array, streams: Array | int) -> GenerationOrder:
  """Given tokens first, the rest in `streams` parts that are generated in parallel (section 3.1).

  Given tokens are singletons in text order. The m remaining positions, in text order, are cut into
  S text streams whose lengths differ by at most one. The first tokens of all streams come first,
  one by one, then one token of every stream at a time. Positions past a sequence's length are
  stored last, in a block of their own.

  Args:
    given_BxN: bool, by text position (entry i is position i + 1).
    length_B: int32 in 0..N, tokens of each sequence; positions above are padding.
    streams: int32 scalar S >= 1, may be traced.
  Returns:
    The order, `[B, N]`. Its first `sum(given & (position <= length))` slots are the given ones.
  """
  num_slots = given_BxN.shape[1]
  position_N = jnp.arange(1, num_slots + 1, dtype=jnp.int32)
  real_BxN = position_N <= length_B[:, None]
  given_BxN = given_BxN & real_BxN
  num_given_Bx1 = jnp.sum(given_BxN, axis=1, keepdims=True)
  num_free_Bx1 = jnp.sum(real_BxN, axis=1, keepdims=True) - num_given_Bx1

  rank_BxN = jnp.cumsum(~given_BxN, axis=1) - 1  # among the positions to generate
  short, extra = num_free_Bx1 // streams, num_free_Bx1 % streams
  # The first `extra` streams hold short + 1 positions, the others `short` of them.
  in_long_BxN = rank_BxN < extra * (short + 1)
  rest_BxN = rank_BxN - extra * (short + 1)
  short_or_1 = jnp.maximum(short, 1)  # without it an empty stream would divide by 0
  run_BxN = jnp.where(in_long_BxN, rank_BxN // (short + 1), extra + rest_BxN // short_or_1)
  offset_BxN = jnp.where(in_long_BxN, rank_BxN % (short + 1), rest_BxN % short_or_1)
  # First tokens take the steps 0..S-1; then every step takes the next token of all streams.
  step_BxN = jnp.where(offset_BxN == 0, run_BxN, streams - 1 + offset_BxN)

  given_block_BxN = jnp.cumsum(given_BxN, axis=1)
  block_BxN = jnp.where(given_BxN, given_block_BxN, num_given_Bx1 + 1 + step_BxN)
  # A label beyond that of every real block, so that no real slot sees padding.
  block_BxN = jnp.where(real_BxN, block_BxN, 2 * num_slots + 1).astype(jnp.int32)
  slot_BxN = jnp.argsort(block_BxN, axis=1, stable=True)  # in a block, streams in text order
  block_BxN = jnp.take_along_axis(block_BxN, slot_BxN, axis=1)
  return GenerationOrder(position_N[slot_BxN], block_BxN)


def with_given(order: GenerationOrder, given_BxN: Array, length_B: Array) -> GenerationOrder:
  """Changes an order so that given tokens come first.

  Given tokens are singletons in text order; the others follow as in the order, block by block.

  Args:
    order: `[B or 1, N]`.
    given_BxN: bool, by text position.
    length_B: int32 in 0..N, tokens of each sequence; positions above are stored last, in a block of
      their own, so that no other slot sees them.
  Returns:
    The order, `[B, N]`. An order of `given_first` only gets other labels.

  Examples:
    >>> order = with_given(strided(6, 2), jnp.array([[True] + 5 * [False]]), jnp.array([5]))
    >>> order.position_BxN.tolist(), order.block_BxN.tolist()
    ([[1, 4, 2, 5, 3, 6]], [[1, 8, 9, 9, 11, 13]])
  """
  num_slots = order.num_slots
  position_BxN = jnp.broadcast_to(order.position_BxN, given_BxN.shape)
  start_BxN, _ = block_bounds(order.block_BxN)
  is_given_BxN = jnp.take_along_axis(given_BxN, position_BxN - 1, axis=1)
  is_real_BxN = position_BxN <= length_B[:, None]
  # Labels of given tokens, of others and of padding: up to N, up to 2 N, and beyond.
  block_BxN = jnp.where(is_given_BxN, position_BxN, num_slots + 1 + start_BxN)
  block_BxN = jnp.where(is_real_BxN, block_BxN, 2 * num_slots + 1)
  slot_BxN = jnp.argsort(block_BxN, axis=1, stable=True)
  take = lambda x_BxN: jnp.take_along_axis(x_BxN, slot_BxN, axis=1)
  return GenerationOrder(take(position_BxN), take(block_BxN))


def strided(num_slots: int, streams: Array | int) -> GenerationOrder:
  """S text streams of N/S tokens, first tokens one by one, then S at a time (paper section 3.1).

  Args:
    num_slots: N.
    streams: int32 scalar S, may be traced; if S does not divide N, lengths differ by one.
  Returns:
    The order, shape [1, N].

  Examples:
    >>> order = strided(8, 2)
    >>> order.position_BxN.tolist(), order.block_BxN.tolist()
    ([[1, 5, 2, 6, 3, 7, 4, 8]], [[1, 2, 3, 3, 4, 4, 5, 5]])
  """
  nothing_given = jnp.zeros((1, num_slots), bool)
  return given_first(nothing_given, jnp.array([num_slots]), streams)


def segments(keys_B: Array, num_slots: int, max_cuts: int) -> GenerationOrder:
  """Texts cut at random places into segments, each read left to right (our choice).

  The number of cuts is log-uniform in 1..max_cuts, their places are uniform. With probability 1/2
  the segments are read in turns, as text streams are (first tokens first, then a token of every
  segment at a time), else one after another in random order, which includes filling in the middle.
  All tokens are singletons.

  Args:
    keys_B: one key per sequence.
    num_slots: N.
    max_cuts: at most N - 1, the places between N tokens.
  """

  def positions(key: Array) -> Array:
    number_key, place_key, turn_key, coin_key = jax.random.split(key, 4)
    num_cuts = jnp.floor((max_cuts + 1.0) ** jax.random.uniform(number_key))
    is_head_N = jnp.pad(jax.random.permutation(place_key, num_slots - 1) < num_cuts, (1, 0))
    turn_N = jax.random.permutation(turn_key, num_slots)
    return read_segments(is_head_N, turn_N, jax.random.bernoulli(coin_key))

  return _singletons(jax.vmap(positions)(keys_B))


def read_segments(is_head_N: Array, turn_N: Array, is_in_turns: Array | bool) -> Array:
  """Text positions in the order in which segments are read.

  Args:
    is_head_N: bool, which tokens begin a segment; the first token always does.
    turn_N: int32, the rank of segment s, if segments are read one after another.
    is_in_turns: bool scalar, whether a token of every segment is read at a time instead.
  Returns:
    int32 position_N, from 1.

  Examples:
    >>> is_head_N = jnp.array([False, False, True, False, False, True])
    >>> read_segments(is_head_N, jnp.array([2, 0, 1]), False).tolist()
    [3, 4, 5, 6, 1, 2]
    >>> read_segments(is_head_N, jnp.array([2, 0, 1]), True).tolist()
    [1, 3, 6, 2, 4, 5]
  """
  num_slots = len(is_head_N)
  slot_N = jnp.arange(num_slots)
  segment_N = jnp.cumsum(is_head_N)
  offset_N = slot_N - jax.lax.cummax(jnp.where(is_head_N, slot_N, 0))
  # By two keys, of which one would overflow in texts of 2**16 tokens.
  major_N = jnp.where(is_in_turns, offset_N, turn_N[segment_N - is_head_N[0]])
  minor_N = jnp.where(is_in_turns, segment_N, offset_N)
  return jnp.lexsort((minor_N, major_N)) + 1


def num_blocks(order: GenerationOrder) -> Array:
  """int32 [B]: the number of blocks of every order, one forward pass of a decoder for each.

  Examples:
    >>> [int(num_blocks(strided(1024, s))[0]) for s in (1, 2, 4)]
    [1024, 513, 259]
  """
  return 1 + jnp.sum(order.block_BxN[:, 1:] != order.block_BxN[:, :-1], axis=1)


def select(choice_B: Array, if_true: GenerationOrder, if_false: GenerationOrder) -> GenerationOrder:
  """For each sequence one order or the other; `choice_B` is bool, `[B]` or `[1]`."""
  return jax.tree.map(functools.partial(jnp.where, choice_B[:, None]), if_true, if_false)
