"""Re-ranking by the matching head against brute force: every pair scored, one query at a time, in float64."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from coca import config
from coca.config import Eval
from coca.data.records import Record, Text
from coca.data.tokenizers.sentencepiece import train
from coca.devices import sharding
from coca.evals import ranking, retrieval
from coca.inference.forward import Forward
from support.common import random_params, tiny
from support.evals import Source_, embeddings, rank64, recalls64, unit

WORDS = tuple(f"{a} {b}" for a in ("red", "green", "blue", "dark") for b in ("apple", "pear", "plum", "fig"))


def reranked64(images, texts, words, owners, logits, k, equal_texts=False):
  """`logits` [N, M] of all pairs; BLIP's matrix: -100, and logit + cosine where the cosine is among a query's top k."""
  cosines = images.astype(np.float64) @ texts.T.astype(np.float64)
  right = owners == np.arange(len(images))[:, None]
  if equal_texts:
    right = np.array([[word in words[mine] for word in words] for mine in right])
  found = {}
  asked = right.any(1)
  unlike = np.arange(len(images))
  for name, c, m, r, kind in (
    ("i2t", cosines[asked], logits[asked], right[asked], words),
    ("t2i", cosines.T, logits.T, right.T, unlike),
  ):
    plain, rank = rank64(c, r, kind), []
    for q in range(len(c)):
      # Wrong ones first where cosines are equal, but for those of the best right one's kind behind it.
      best = np.flatnonzero(r[q])[c[q, r[q]].argmax()]
      first = np.flatnonzero(r[q] & (kind == kind[best]))[0]
      late = r[q] | ((kind == kind[best]) & (np.arange(len(kind)) > first))
      top = np.argsort(-np.round(c[q] - ranking.TIE * late, 9), kind="stable")[:k]
      scores = np.full(c.shape[1], -100.0)
      scores[top] = m[q, top] + c[q, top]
      rank.append(rank64(scores[None], r[q, None], kind)[0] if r[q, top].any() else plain[q])
    found |= {f"{name}_r{d}_reranked": np.mean(np.array(rank) < d) for d in (1, 5, 10)}
  return found


# --- Candidates and their ranks ---


@pytest.mark.parametrize("k", [1, 6, 23, 1000])
def test_nearest_are_the_highest_cosines(k):
  queries, candidates = embeddings(0, 37, 8), embeddings(1, 23, 8)
  right = np.random.default_rng(2).random((37, 23)) < 0.1
  cosines = queries @ candidates.T
  want = np.sort(np.argsort(-cosines, axis=1)[:, :k], axis=1)
  for block in (1, 10, 1000):
    found = ranking.nearest(queries, candidates, lambda a, b: right[a:b], k, block)
    assert (found.index == want).all() and (found.right == np.take_along_axis(right, want, 1)).all()
    np.testing.assert_allclose(found.cosine, np.take_along_axis(cosines, want, 1), atol=1e-6)


def test_ties_for_the_last_place_go_to_wrong_candidates_in_line():
  queries = np.array([[1, 0], [1, 0], [np.nan, 0]], np.float32)
  candidates = np.array([[0.6, 0.8], [0.6, -0.8], [1, 0], [0.6, 0.8], [0.6, -0.8]], np.float32)
  right = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]], bool)
  found = ranking.nearest(queries, candidates, lambda a, b: right[a:b], 3)
  assert found.index.tolist() == [[1, 2, 3], [0, 1, 2], [2, 3, 4]]
  assert not found.right.any()
  assert ranking.nearest(queries, candidates, lambda a, b: right[a:b], 4).index.tolist() == [
    [1, 2, 3, 4],
    [0, 1, 2, 3],
    [0, 2, 3, 4],
  ]


def test_ranks_of_ties_nan_and_queries_without_a_right_candidate():
  scores = np.array([[3, 1, 2], [2, 2, 1], [np.nan, 1, 0], [1, np.nan, 0], [9, 8, 7]], np.float32)
  right = np.array([[0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)
  assert ranking.reranked(np.array([5, 0, 0, 0, 5]), scores, right).tolist() == [1, 1, 2, 1, 5]


# --- Recalls ---


@pytest.fixture(scope="module")
def case():
  """60 pictures of up to five texts, many of them equal, one picture without any; logits of all pairs."""
  rng = np.random.default_rng(0)
  n = 60
  counts = rng.integers(0, 6, n)
  counts[4] = 0
  owners = np.repeat(np.arange(n), counts)
  words = rng.integers(0, 100, len(owners))
  texts = embeddings(1, 100, 12)[words]
  images = unit(embeddings(2, n, 12) + 0.8 * np.array([texts[owners == i].sum(0) for i in range(n)]))
  own = np.zeros((n, 100))
  own[owners, words] = 1
  logits = (rng.normal(size=(n, 100)) + 2 * own).astype(np.float32)[:, words]
  return images, texts, words, owners, logits


@pytest.mark.parametrize("equal_texts", [False, True])
@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("k", [1, 3, 20, 59, 10_000])
def test_recalls_are_brute_force(case, k, block, equal_texts):
  images, texts, words, owners, logits = case
  found = dict(retrieval.recalls(images, texts, words, owners, equal_texts, block, k, lambda i, t: logits[i, t]))
  plain = recalls64(images, texts, words, owners, equal_texts)
  assert found == plain | reranked64(images, texts, words, owners, logits, k, equal_texts)
  reranked = {name: found[f"{name}_reranked"] for name in plain}
  if k == 1:
    assert reranked == plain  # there is nothing to order
  if k >= 20:
    assert 0 < reranked["i2t_r1"] < reranked["i2t_r5"] and reranked["t2i_r1"] != plain["t2i_r1"]
  if k < 10:
    assert reranked["i2t_r10"] == plain["i2t_r10"]  # the head has no say beyond its candidates


@pytest.mark.parametrize(
  ("logits", "i2t", "t2i"),
  [
    ([[0, 0, 0], [0, 0.1, 0]], 1, 1),  # text 1: 0.96 against 1.036
    ([[0, 0.03, 9], [0, 0, 0]], 1, 1 / 3),  # the 9 is no candidate of picture 0, but picture 0 is one of text 2
    ([[0, 0.05, 0], [0, 0, 0]], 0.5, 2 / 3),  # picture 0: 1 against 1.01
  ],
)
def test_recalls_by_hand(logits, i2t, t2i):
  """By cosine all are right but text 1, which is nearer to picture 0 (0.96) than to its own (0.936)."""
  images = np.array([[1, 0], [0.8, 0.6]], np.float32)
  texts = np.array([[1, 0], [0.96, 0.28], [0, 1]], np.float32)
  logits = np.array(logits, np.float32)
  found = dict(
    retrieval.recalls(images, texts, np.arange(3), np.array([0, 1, 1]), rerank=2, match=lambda i, t: logits[i, t])
  )
  assert (found["i2t_r1"], found["t2i_r1"]) == (1, 2 / 3)
  assert (found["i2t_r1_reranked"], found["t2i_r1_reranked"]) == (i2t, t2i)


@pytest.mark.parametrize("logit", [0.0, np.nan])
def test_constant_models_find_nothing(logit):
  one = np.full((30, 4), 0.5, np.float32)
  found = dict(
    retrieval.recalls(
      one, one, np.arange(30), np.arange(30), rerank=20, match=lambda i, t: np.full(len(i), logit, np.float32)
    )
  )
  assert len(found) == 12 and set(found.values()) == {0}


# --- A model ---


class Counted(Forward):
  """Notes the shapes that are scored."""

  def __init__(self, *args):
    super().__init__(*args)
    self.scored = []

  def score(self, params, encoded, text):
    self.scored.append((encoded.tokens.shape, text.shape))
    return super().score(params, encoded, text)


@pytest.fixture(scope="module")
def model():
  """Random parameters, 45 records with one to three texts, one that is gone, and the logits of all pairs."""
  settings = tiny(matching__weight=1.0, model__text__length=16)
  tokenizer, rng = train(list(WORDS) * 4, 88), np.random.default_rng(0)
  params, records = random_params(settings), []
  for i in range(45):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(out, "PNG")
    texts = [WORDS[k] for k in rng.choice(16, rng.integers(1, 4), replace=False)]
    records.append(Record(str(i), out.getvalue(), tuple(map(Text, texts))))
  records[7] = None

  kept = [record for record in records if record]
  words = [[text.text for text in record.texts] for record in kept]
  ids = np.stack([tokenizer.encode(word, settings.model.text.length) for word in WORDS])
  assert len(np.unique(ids, axis=0)) == 16
  forward = Forward(settings, sharding.make_mesh(config.Mesh(), jax.devices()[:1]))
  pixels = np.stack([np.asarray(Image.open(io.BytesIO(record.image))) for record in kept])
  encoded = forward.encode(params, forward.put(pixels))
  logits = np.asarray(forward.score(params, encoded, np.repeat(ids[None], len(kept), 0)).match_logit)
  images, texts = np.asarray(encoded.embedding), np.asarray(forward.embed_texts(params, ids))
  flat = np.array([WORDS.index(word) for mine in words for word in mine])
  owners = np.repeat(np.arange(len(kept)), [len(mine) for mine in words])
  return settings, tokenizer, params, Source_(records), (images, texts[flat], flat, owners), logits[:, flat]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch", "k"), [(1, 13, 12), (8, 13, 12), (8, 100, 1000), (1, 8, 1)])
def test_retrieval_is_brute_force_over_the_models_own_scores(model, monkeypatch, devices, batch, k):
  settings, tokenizer, params, source, pairs, logits = model
  monkeypatch.setattr(retrieval, "TEXTS", 5)
  forward = Counted(settings, sharding.make_mesh(config.Mesh(), jax.devices()[:devices]))
  evaluator = retrieval.Retrieval(
    settings, Eval(kind="retrieval", batch=batch, texts_per_image=3, rerank=k), forward, tokenizer, source
  )
  found = dict(evaluator.run(params))
  assert found == recalls64(*pairs, False) | reranked64(*pairs, logits, k) | {"examples": 44}
  assert k == 1 or any(found[f"{name}_reranked"] != value for name, value in recalls64(*pairs, False).items())
  assert len(set(forward.scored)) == 1  # one program
  [(images, _, _), (_, width, _)] = forward.scored[0]
  assert images == (1 if devices == 1 else 8) and width == 5
  if k == 1000:
    assert len(forward.scored) == -(-44 // 8) * -(-16 // 5)  # each picture with each of the 16 texts, once
  assert dict(evaluator.run(params)) == found


@pytest.mark.slow
def test_a_picture_that_is_gone_later_counts_against_the_model(model):
  settings, tokenizer, params, source, *_ = model
  forward = Forward(settings, sharding.make_mesh(config.Mesh(), jax.devices()[:1]))
  stream = retrieval.Retrieval(settings, Eval(kind="retrieval", batch=16), forward, tokenizer, source).stream
  ids = np.stack([tokenizer.encode(word, settings.model.text.length) for word in WORDS])
  # Record 7 cannot be read; the third pair is the first one again.
  image, text = np.array([0, 1, 0, 1, 0]), np.array([3, 3, 3, 2, 2])
  found = retrieval.match_logits(stream, params, np.array([6, 7]), ids, image, text)
  assert np.isnan(found).tolist() == [False, True, False, True, False]
  assert found[0] == found[2] != found[4]


# --- Settings ---


@pytest.mark.parametrize(
  ("settings", "weight", "message"),
  [
    (Eval(kind="retrieval", rerank=4), 0.0, r"config\.evals\.x\.rerank 4 needs .*config\.matching\.weight above 0"),
    (Eval(kind="captions", rerank=4), 1.0, r"config\.evals\.x\.rerank 4 is for kind 'retrieval', not 'captions'"),
    (Eval(kind="retrieval", beams=3), 1.0, r"config\.evals\.x\.beams 3 is for kind 'captions', not 'retrieval'"),
    (Eval(kind="captions", beams=0), 1.0, r"config\.evals\.x\.beams is 0; it takes 1 or more"),
    (Eval(kind="retrieval", rerank=-1), 1.0, r"config\.evals\.x\.rerank is -1; it takes 0 or more"),
  ],
)
def test_settings_that_make_no_sense(settings, weight, message):
  c = config.default()
  c.matching.weight, c.evals.x = weight, config.to_dict(settings)
  with pytest.raises(ValueError, match=message):
    config.parse(c)
