"""What the rows of a whole sequence see, written out for one order."""

import jax.numpy as jnp

from armd_jax.models.rows import content_of, full_rows
from armd_jax.models.vocabulary import BOS
from armd_jax.order import GenerationOrder


def test_rows_of_a_sequence_in_blocks():
  order = GenerationOrder(jnp.array([[3, 1, 4, 2]]), jnp.array([[1, 2, 2, 3]]))
  rows = full_rows(order)
  # Content rows: BOS, then slots 1, 2 and 3.
  assert rows.content_position_BxW.tolist() == [[0, 3, 1, 4]]
  assert rows.content_length_BxW.tolist() == [[1, 2, 4, 4]]  # BOS and all of the own block
  # Query rows: slots 1 to 4.
  assert rows.query_position_BxW.tolist() == [[3, 1, 4, 2]]
  assert rows.query_length_BxW.tolist() == [[1, 2, 2, 4]]  # BOS and all of earlier blocks
  assert rows.causal_length_BxW.tolist() == [[1, 3, 3, 4]]
  assert rows.count_B.tolist() == [4] and not rows.sees_all


def test_no_row_sees_more_content_than_there_is():
  one_block = GenerationOrder(jnp.array([[1, 2, 3]]), jnp.array([[1, 1, 1]]))
  rows = full_rows(one_block)
  assert rows.content_length_BxW.tolist() == [[1, 3, 3]]
  assert rows.query_length_BxW.tolist() == [[1, 1, 1]]


def test_content_begins_with_bos_or_the_given_token():
  tokens = jnp.array([[5, 6, 7]])
  assert content_of(tokens, None).tolist() == [[BOS, 5, 6]]
  assert content_of(tokens, jnp.array([2])).tolist() == [[2, 5, 6]]
