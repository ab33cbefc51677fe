"""Draws of tokens against their probabilities, the processing of logits against its formulas, and the settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.decoding.common import process, top
from coca.decoding.sample import draw, image_keys, uniforms
from coca.decoding.settings import Decoding
from support.common import BOS, EOS, PAD, SPECIAL

jit_draw = jax.jit(draw, static_argnums=2)


def distribution(logits, d):
  """What `draw` draws from, in float64: the probabilities in descending order, their ids, how many are kept."""
  logits = np.asarray(logits, np.float64) / d.temperature
  ids = np.argsort(-logits, kind="stable")[: d.top_k or len(logits)]
  p = np.exp(logits[ids] - logits.max())
  p /= p.sum()
  kept = int(np.searchsorted(np.cumsum(p), d.top_p)) + 1 if d.top_p < 1 else len(p)
  return p, ids, kept


@pytest.mark.slow
def test_frequencies_are_the_probabilities():
  """Chi-square with a fixed seed; each picture's number gives its own draws."""
  logits = np.random.default_rng(0).normal(0, 1.5, 300).astype(np.float32)
  logits[[7, 200]] = -np.inf
  count = 20_000
  u = jax.jit(lambda ids: uniforms(image_keys(3, ids), 6, 4))(np.arange(count // 4, dtype=np.uint32))
  assert u.shape == (count // 4, 4, 2) and np.abs(np.corrcoef(np.asarray(u).reshape(-1, 8).T) - np.eye(8)).max() < 0.05
  narrow = {"top_p": 0.8, "temperature": 1.3}, {"top_k": 20}, {"top_k": 9, "top_p": 0.5}
  for options in ({}, {"temperature": 0.5}, *narrow):
    d = Decoding(strategy="sample", **options)
    drawn = np.asarray(jit_draw(jnp.broadcast_to(logits, (*u.shape[:2], 300)), u, d))
    p, ids, kept = distribution(logits, d)
    expected = p[:kept] / p[:kept].sum() * count
    observed = np.bincount(drawn.ravel(), minlength=300)[ids[:kept]]
    assert observed.sum() == count  # nothing else
    common = expected >= 5
    chi2 = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - common.all()
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom), options
    assert chi2 > freedom - 4 * np.sqrt(2 * freedom), options


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [50, 700, 4500])
def test_a_nucleus_is_the_smallest_set_with_its_mass(vocab):
  """Numbers in the middle of each token's share give that token, those at the end the last one kept.

  The shares stand in the order of the logits; of a nucleus above 256 tokens, in the order of the vocabulary: the first
  number chooses a block of 256, the second one of its tokens.
  """
  rng, rows, sizes = np.random.default_rng(vocab), 9, set()
  for top_p, top_k in ((0.9, 0), (0.5, 0), (0.05, 0), (0.999, 0), (0.8, 9)):
    d = Decoding(strategy="sample", top_p=top_p, top_k=top_k)
    logits, u = np.zeros((rows, vocab), np.float32), np.zeros((rows, 20, 2), np.float32)
    want = np.zeros((rows, 20), int)
    for row in range(rows):
      p, ids, kept, upto = (), (), 0, np.array([top_p])
      while np.abs(upto - top_p).min() < 5e-6:  # too near to call in fp32
        logits[row] = rng.normal(0, rng.choice([0.1, 1, 3, 8]), vocab)
        if row % 3 == 0:
          logits[row] = np.round(logits[row]) + 0.0  # equal ones: the first come first (-0.0 is not 0.0)
        p, ids, kept = distribution(logits[row], d)
        upto = np.concatenate([[0], np.cumsum(p)])
      sizes.add(kept)
      some = np.linspace(0, kept - 1, 19).astype(int)
      some[p[some] < 2e-5] = 0  # narrower than fp32 resolves
      want[row] = [*ids[some], ids[kept - 1]]
      if kept <= 256:
        u[row, :19, 0], u[row, 19] = (upto[some] + upto[some + 1]) / 2 / upto[kept], np.float32(1 - 2**-24)
        continue
      share = np.zeros(-(-vocab // 256) * 256)
      share[ids[:kept]] = p[:kept]
      blocks, (block, place) = share.reshape(-1, 256), np.divmod(want[row], 256)
      for k, part, which in ((0, blocks.sum(1), block), (1, blocks[block].T, place)):
        end = np.cumsum(part, axis=0)
        low, high = (np.take_along_axis(x, which[None], 0)[0] if part.ndim > 1 else x[which] for x in (end - part, end))
        u[row, :, k] = (low + high) / 2 / end[-1]
    got = jit_draw(jnp.broadcast_to(logits[:, None], (rows, 20, vocab)), jnp.asarray(u), d)
    np.testing.assert_array_equal(got, want)
  assert len(sizes) > 12 and min(sizes) == 1 and max(sizes) > 0.9 * vocab


def test_top_is_top_k():
  rng = np.random.default_rng(1)
  for n, k in ((5000, 1), (5000, 12), (4999, 12), (700, 5), (700, 300), (10, 10), (5000, 40)):
    x = rng.normal(size=(3, 2, n)).astype(np.float32)
    x[0] = np.round(x[0])
    x[1, 0, 3:] = -np.inf
    for a, b in zip(top(jnp.asarray(x), k), jax.lax.top_k(x, k), strict=True):
      np.testing.assert_array_equal(a, b)


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
  logits = jnp.arange(-8.0, 8)[None, None]
  text = jnp.array([[[BOS, 12, 5, 12, PAD, PAD]]])
  out = process(logits, text, jnp.int32(4), Decoding(repetition_penalty=2.0, min_length=4), SPECIAL)
  want = np.arange(-8.0, 8)
  want[12], want[5], want[[PAD, BOS]] = 2, -6, -np.inf
  np.testing.assert_array_equal(out[0, 0], want)
  want[EOS] = -np.inf
  np.testing.assert_array_equal(
    process(logits, text, jnp.int32(3), Decoding(repetition_penalty=2.0, min_length=4), SPECIAL)[0, 0], want
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"strategy": "nucleus"}, "strategy is 'nucleus'; it may be 'greedy', 'sample', 'beam'"),
    ({"n": 3}, "n 3 has no effect with strategy 'greedy'; leave it out or set 'sample' or 'beam'"),
    ({"strategy": "beam", "n": 3, "beams": 2}, "n 3 is more than beams 2"),
    ({"max_length": 1}, "max_length is 1"),
    ({"min_length": 5, "max_length": 5}, "min_length 5 .* max_length 5"),
    ({"temperature": 0.5}, "temperature 0.5 has no effect with strategy 'greedy'"),
    ({"strategy": "beam", "top_p": 0.5}, "top_p 0.5 has no effect with strategy 'beam'"),
    ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0"),
    ({"strategy": "sample", "top_p": 0.0}, "top_p is 0.0"),
    ({"strategy": "sample", "top_k": -1}, "top_k is -1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ({"early_stop": True}, "early_stop True has no effect"),
    ({"rerank": True}, "rerank .* n is 1"),
    ({"seed": -1}, "seed is -1"),
  ],
)
def test_settings_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match="decoding: " + message):
    Decoding(**options)
