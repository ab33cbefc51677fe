"""Decoding by plain loops over full forward passes, an image, a beam and a word at a time."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from coca.decoding.sample import draw, image_keys, uniforms
from coca.decoding.settings import Decoding
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from support.common import BOS, EOS, PAD, SPECIAL, make_mesh, pairs, random_params, tiny

N, LENGTH, VOCAB = 8, 12, 16
jit_keys, jit_uniforms = jax.jit(image_keys), jax.jit(uniforms, static_argnums=2)
jit_draw = jax.jit(draw, static_argnums=2)
IDS = np.arange(100, 100 + N, dtype=np.uint32)


@functools.cache
def captioner(vocab=VOCAB, length=LENGTH, mesh=(1, 1, 1)):
  """A model whose texts end at different words, or not at all; its parameters on the mesh; pictures."""
  settings = tiny(model__text__length=length, model__text__vocab=vocab)
  forward = Forward(settings, make_mesh(*mesh))
  return forward, jax.device_put(random_params(settings, 51), forward.params_shardings), pairs(settings, N)["image"]


def write(decoding, image=None, ids=IDS, prompt=None, lengths=None, **model):
  """Texts [B, n, T] and scores [B, n] of the compiled decoder."""
  forward, params, images = captioner(**model)
  image = images if image is None else image
  inputs = forward.put({"image": image, "ids": ids[: len(image)]})
  given = forward.put({"prompt": prompt, "lengths": lengths}) if prompt is not None else {}
  encoded = forward.encode(params, inputs["image"])
  out = forward.caption(forward.writer(params), encoded, decoding, special=SPECIAL, ids=inputs["ids"], **given)
  return np.asarray(out.text), np.asarray(out.score)


@functools.cache
def full_pass(vocab, length):
  settings = tiny(model__text__length=length, model__text__vocab=vocab)
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def log_probs(params, image, text):
    model = nnx.merge(graphdef, params)
    logits = model(image, text, contrast=False).states @ model.softmax_kernel()
    return logits, jax.nn.log_softmax(logits)

  return log_probs


def uncached(text, vocab=VOCAB, length=LENGTH):
  """Logits and log-probabilities [B, K, T, V] of all positions of texts [B, K, T]: one full forward pass each."""
  _, params, image = captioner(vocab, length)
  rows = text.shape[1]
  out = full_pass(vocab, length)(params, image.repeat(rows, 0), text.reshape(-1, length))
  return [np.array(x).reshape(*text.shape, -1) for x in out]


def processed(scores, seen, d):
  """Scores [V] after the repetition penalty and without what would repeat an n-gram of `seen` or may not follow it."""
  scores = scores.copy()
  for i in set(seen.tolist()):
    scores[i] = scores[i] * d.repetition_penalty if scores[i] < 0 else scores[i] / d.repetition_penalty
  if n := d.no_repeat_ngram_size:
    grams = [tuple(seen[i : i + n]) for i in range(len(seen) - n + 1)]
    scores[[g[-1] for g in grams if g[:-1] == tuple(seen[len(seen) - n + 1 :])]] = -np.inf
  scores[[PAD, BOS]] = -np.inf
  if len(seen) < d.min_length:
    scores[EOS] = -np.inf
  return scores


def start(rows, prompt, lengths, length):
  text = np.full((N, rows, length), PAD, np.int32)
  text[:, :, 0] = BOS
  for row in range(N if prompt is not None else 0):
    text[row, :, : lengths[row]] = prompt[row, : lengths[row]]
  return text, np.ones(N, int) if prompt is None else lengths


def plain_sample(d, prompt=None, lengths=None, uncached=uncached):
  """Greedy and sampling by a full forward pass a token, which is `uncached`."""
  longest = d.max_length or LENGTH
  text, lengths = start(d.n, prompt, lengths, LENGTH)
  ended = np.zeros((N, d.n), bool)
  score = np.zeros((N, d.n))
  keys = jit_keys(d.seed, IDS)
  for t in range(longest - 1):
    logits, logp = uncached(text)
    u = jit_uniforms(keys, t, d.n)
    allowed = np.array([[processed(logits[b, k, t], text[b, k, : t + 1], d) for k in range(d.n)] for b in range(N)])
    chosen = np.asarray(allowed.argmax(-1) if d.strategy == "greedy" else jit_draw(allowed, u, d))
    for b, k in np.argwhere(~ended & (t + 1 >= lengths)[:, None]):
      text[b, k, t + 1] = chosen[b, k]
      score[b, k] += logp[b, k, t, chosen[b, k]]
      ended[b, k] = chosen[b, k] == EOS
  new = (text != PAD).sum(-1) - lengths[:, None]
  return text[:, :, :longest], score / new**d.length_penalty


class Heap:
  """The texts of an image that have ended, as transformers 4.15 keeps them: a score is divided by the text's length."""

  def __init__(self, d):
    self.d, self.texts = d, []

  def add(self, score, text, ids):
    """`text` counts in the length; `ids` is what it looks like in the end."""
    self.texts.append((score / len(text) ** self.d.length_penalty, ids))
    self.texts = sorted(self.texts, key=lambda x: -x[0])[: self.d.beams]

  def done(self, best, length):
    full = len(self.texts) == self.d.beams
    return full and (self.d.early_stop or self.texts[-1][0] >= best / length**self.d.length_penalty)


def plain_whole(d, prompt=None, lengths=None, uncached=uncached):
  """Beam search as transformers 4.15 has it, an image and a beam at a time, by a full forward pass a token."""
  longest, beams = d.max_length or LENGTH, d.beams
  text, lengths = start(beams, prompt, lengths, LENGTH)
  running = [[(0.0, text[b, 0, : lengths[b]])] for b in range(N)]
  heaps, open_ = [Heap(d) for _ in range(N)], set(range(N))
  for t in range(longest - 1):
    for b in range(N):
      for k, (_, seq) in enumerate(running[b]):
        text[b, k, : len(seq)] = seq
    logp = uncached(text)[1]
    for b in [b for b in open_ if t + 1 >= lengths[b]]:
      found = []
      for k, (score, seq) in enumerate(running[b]):
        allowed = processed(logp[b, k, t], seq, d)
        found += [(score + allowed[v], seq, v) for v in np.flatnonzero(allowed > -np.inf)]
      found = sorted(found, key=lambda x: -x[0])[: 2 * beams]
      for score, seq, v in found[:beams]:
        if v == EOS:
          heaps[b].add(score, seq, np.append(seq, v))
      running[b] = [(score, np.append(seq, v)) for score, seq, v in found if v != EOS][:beams]
      if heaps[b].done(found[0][0], t + 1):
        open_.discard(b)
  for b in open_:
    for score, seq in running[b]:
      heaps[b].add(score, seq, seq)
  out, score = np.full((N, d.n, longest), PAD, np.int32), np.full((N, d.n), -np.inf)
  for b in range(N):
    for k, (s, seq) in enumerate(heaps[b].texts[: d.n]):
      out[b, k, : len(seq)], score[b, k] = seq, s
  return out, score


def plain_beam(d, prompt=None, lengths=None, vocab=VOCAB, length=LENGTH, uncached=uncached):
  """Beam search with lists: what runs and what has ended of each image, by a full forward pass a token."""
  longest, beams = d.max_length or length, d.beams
  text, lengths = start(beams, prompt, lengths, length)
  running = [[(0.0, text[b, 0, : lengths[b]])] for b in range(N)]
  done = [[] for _ in range(N)]
  open_ = set(range(N))
  for t in range(longest - 1):
    for b in range(N):
      for k, (_, seq) in enumerate(running[b]):
        text[b, k, : len(seq)] = seq
    logp = uncached(text, vocab, length)[1]
    for b in [b for b in open_ if t + 1 >= lengths[b]]:
      found = []
      for k, (score, seq) in enumerate(running[b]):
        allowed = processed(logp[b, k, t], seq, d)
        found += [(score + allowed[v], np.append(seq, v)) for v in np.flatnonzero(allowed > -np.inf)]
      found = sorted(found, key=lambda x: -x[0])[: 2 * beams]
      new = t + 2 - lengths[b]
      for score, seq in found[:beams]:
        if seq[-1] == EOS or t + 2 == longest:
          done[b].append((score / new**d.length_penalty, seq))
      done[b] = sorted(done[b], key=lambda x: -x[0])[:beams]
      running[b] = [x for x in found if x[1][-1] != EOS][:beams]
      if len(done[b]) == beams and (d.early_stop or running[b][0][0] / new**d.length_penalty <= done[b][-1][0]):
        open_.discard(b)
  text = np.full((N, d.n, longest), PAD, np.int32)
  score = np.full((N, d.n), -np.inf)
  for b in range(N):
    for k, (s, seq) in enumerate(done[b][: d.n]):
      text[b, k, : len(seq)], score[b, k] = seq, s
  return text, score


def some_prompts():
  """Prompts of one to five tokens."""
  lengths = np.array([1, 3, 5, 1, 2, 5, 4, 3], np.int32)
  prompt = np.random.default_rng(3).integers(4, VOCAB, (N, 6)).astype(np.int32)
  prompt[:, 0] = BOS
  return np.where(np.arange(6) < lengths[:, None], prompt, 9).astype(np.int32), lengths  # 9: to be left out


def assert_same(actual, expected):
  np.testing.assert_array_equal(actual[0], expected[0])
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4)


# Greedy with a prompt, samples without, beams with one.
WAYS = pytest.mark.parametrize(
  ("decoding", "prompted"),
  [
    (Decoding(), True),
    (Decoding(strategy="sample", n=3, top_k=4, seed=5), False),
    (Decoding(strategy="beam", beams=3, n=2), True),
  ],
  ids=["greedy", "sample", "beam"],
)


def assert_cached_equals_uncached(decoding, prompted, captioner, full_pass):
  """What a captioner of regions (`Forward`, parameters, images) writes is what `full_pass` of all tokens gives."""
  forward, params, image = captioner

  def uncached(text, *_):
    images = jax.tree.map(lambda x: x.repeat(text.shape[1], 0), image)
    return [np.array(x).reshape(*text.shape, -1) for x in full_pass(params, images, text.reshape(-1, LENGTH))]

  prompt, lengths = some_prompts() if prompted else (None, None)
  given = {"prompt": prompt, "lengths": lengths} if prompted else {}
  encoded = forward.encode(params, forward.put(image))
  out = forward.caption(forward.writer(params), encoded, decoding, special=SPECIAL, ids=IDS, **given)
  plain = plain_beam if decoding.strategy == "beam" else plain_sample
  assert_same((np.asarray(out.text), np.asarray(out.score)), plain(decoding, prompt, lengths, uncached=uncached))
