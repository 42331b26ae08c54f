"""The baseline that a small language model has to beat: interpolated Witten-Bell counts.

    P_k(w | h) = (c(h, w) + T(h) P_{k-1}(w | h')) / (c(h) + T(h)),   P_{-1}(w) = 1 / V

where h is the k tokens before w, h' is h without its oldest one, c counts in the training windows
and T(h) is how many different tokens follow h. A context never seen leaves P_{k-1} as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def witten_bell_nats(
  train_WxN: np.ndarray | Sequence[np.ndarray],
  scored_UxM: np.ndarray,
  order: int,
  vocab_size: int,
) -> np.ndarray:
  """Scores windows by an order-k model counted on other windows.

  Like the model it is compared with, it sees nothing before a window's start, neither when it
  counts nor when it scores: the n-th token of a window has a context of min(n, k) tokens.

  Args:
    train_WxN: integer, windows to count, ids in 0..V-1.
    scored_UxM: integer, windows to score; M may differ from N.
    order: k, the longest context in tokens (k = 2 counts triples), at least 0.
    vocab_size: V.
  Returns:
    nats_UxM: float64, `-ln P` of every scored token.
  Raises:
    ValueError: the order is negative, or an id is outside the vocabulary.

  Examples:
    >>> nats = witten_bell_nats(np.array([[0, 1, 0, 1, 0]]), np.array([[1, 0], [0, 0]]), 1, 2)
    >>> np.exp(-nats).round(4).tolist()  # P_0(1) = (2 + 2/2) / (5 + 2); P_1(0|1) = (2 + 4/7) / 3
    [[0.4286, 0.8571], [0.5714, 0.1905]]
  """
  if order < 0:
    raise ValueError(f'order is {order}; write 0 or more')
  train_WxN, scored_UxM = (np.asarray(x, np.int64) for x in (train_WxN, scored_UxM))
  for tokens in (train_WxN, scored_UxM):
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
      raise ValueError(f'ids run to {tokens.max()}, outside the vocabulary of {vocab_size}')

  prob_UxM = np.full(scored_UxM.shape, 1 / vocab_size)
  # Contexts are numbered: at order j, column n holds the number of the j tokens before token n + j.
  # Context and token make the key `context V + token`, whose rank among the keys counted is that
  # gram's number as a context one order up; so keys of any order fit int64. -1: never seen.
  num_contexts = 1
  train_context, scored_context = np.zeros_like(train_WxN), np.zeros_like(scored_UxM)
  for j in range(order + 1):
    train_key = train_context * vocab_size + train_WxN[:, j:]
    scored_key = scored_context * vocab_size + scored_UxM[:, j:]
    if not train_key.size or not scored_key.size:  # all windows are shorter than this context
      break
    key_G, train_gram, count_G = np.unique(train_key, return_inverse=True, return_counts=True)
    rank = np.minimum(np.searchsorted(key_G, scored_key), len(key_G) - 1)
    scored_gram = np.where(key_G[rank] == scored_key, rank, -1)

    # One entry more, a zero, is what -1 reads.
    context_G = key_G // vocab_size
    count_of_context = np.bincount(context_G, count_G, num_contexts + 1)
    kinds_of_context = np.bincount(context_G, minlength=num_contexts + 1)
    c_hw = np.append(count_G, 0)[scored_gram]
    c_h, t_h = count_of_context[scored_context], kinds_of_context[scored_context]
    shorter = prob_UxM[:, j:]
    longer = (c_hw + t_h * shorter) / np.maximum(c_h + t_h, 1)
    prob_UxM[:, j:] = np.where(t_h > 0, longer, shorter)

    num_contexts = len(key_G)
    train_context = train_gram.reshape(train_key.shape)[:, :-1]
    scored_context = scored_gram[:, :-1]
  return -np.log(prob_UxM)
