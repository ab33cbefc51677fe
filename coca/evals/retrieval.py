"""Image-text retrieval: recall at 1, 5 and 10 in both directions, as in CLIP, CoCa (section 4.2.2) and BLIP.

A query counts if any of its right answers is among the first K: for an image its own texts, for a text the image
that it belongs to, and no other, as CLIP, CoCa and BLIP count. Where a few names stand under many images that says
little: with `config.evals.NAME.equal_texts` every text equal to one of an image's own is right too, and every image
that owns an equal text. Texts are equal if their token ids are: that is as far as the model can tell; one whose tokens
are all unknown equals none. Ties count against the model, but for those between equal texts, which stay in the order of
the data (`coca.evals.ranking.ranks`). Numbers are shares between 0 and 1.

With `config.evals.NAME.rerank` k, each query's k candidates of the highest cosine are put in a new order, as in BLIP
(arXiv 2201.12086, section 5.1): by the matching head's logit of a match plus the cosine. All others come after them.

Videos are searched by the mean of some frames' embeddings, `config.evals.NAME.frames`: CoCa's zero-shot retrieval on
MSR-VTT (arXiv 2205.01917, section 4.2.2 and table 5).

With `config.evals.NAME.pixel_neighbours`, what pixels and words alone would reach: the first text of the nearest
training image stands for each image, and texts are compared by the cosine of how often each token is in them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging

from coca.config import Config, Eval
from coca.config.special import PAD, Tokenizer
from coca.data.pipeline import Wants
from coca.data.records import Records
from coca.devices.host import Lagged, from_first
from coca.evals.evaluator import Evaluator
from coca.evals.pixels import SOME
from coca.evals.pixels import nearest as nearest_images
from coca.evals.ranking import BLOCK, nearest, ranks, recall, reranked
from coca.evals.stream import Stream, View, own_texts
from coca.inference.forward import Forward

DEPTHS = (1, 5, 10)
VIDEOS = {"i2t": "v2t", "t2i": "t2v"}  # what the directions are called where the images are videos
TEXTS = 32  # an image's texts that are scored at once


class Retrieval(Evaluator):
  """Embeds every image and up to `settings.texts_per_image` texts of each, and ranks them against each other.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, texts_per_image, equal_texts, rerank, pixel_neighbours.
    source: images and their texts.
    neighbours: the source that `settings.pixel_neighbours` names, if any.
  """

  def __init__(
    self,
    config: Config,
    settings: Eval,
    forward: Forward,
    tokenizer: Tokenizer,
    source: Records,
    neighbours: Records | None = None,
  ):
    wants = Wants(functools.partial(own_texts, settings.source), settings.texts_per_image)
    self.stream = Stream(config, settings, forward, tokenizer, source, wants)
    self.neighbours = neighbours
    self._pixels: list[tuple[str, float]] | None = None

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'i2t_r1' ... 't2i_r10' ('v2t_r1' ... 't2v_r10' of videos) and 'examples', the number of images.

    These are of the cosines, whatever `settings.rerank`; where it is set, 'i2t_r1_reranked' and so on come after them.
    On the first process 'pixel_i2t_r1' and 'pixel_t2i_r1' are the last.
    """
    images, keep, texts, owners = Lagged(), [], [], []
    for batch in self.stream:
      images.append(self.stream.forward.embed_images(params, batch.device["image"]))
      offset = len(keep) * self.stream.batch
      keep.append(batch.rows["weight"] > 0)
      row, slot = np.nonzero((batch.rows["text_weight"] > 0) & keep[-1][:, None])
      texts.append(batch.rows["text"][row, slot])
      owners.append(row + offset)
    keep = np.concatenate(keep)
    images = images.concatenate()[keep]
    if not sum(map(len, owners)):
      logging.warning("retrieval: no record of %s has both an image and a text", self.stream.source.name)
      return
    ids, owners = np.concatenate(texts), (np.cumsum(keep) - 1)[np.concatenate(owners)]

    def match(image, text):
      return match_logits(self.stream, params, np.flatnonzero(keep), ids, image, text)

    settings = self.stream.settings
    for name, value in recalls(
      images,
      self.stream.embed_texts(params, ids),
      self.stream.kinds(ids),
      owners,
      settings.equal_texts,
      rerank=settings.rerank,
      match=match,
    ):
      yield VIDEOS[name[:3]] + name[3:] if self.stream.frames else name, value
    yield "examples", float(len(images))
    if self.neighbours is not None and jax.process_index() == 0:
      if self._pixels is None:
        self._pixels = list(self._pixel_recalls(np.flatnonzero(keep), ids, owners))
      yield from self._pixels

  def _pixel_recalls(self, records: np.ndarray, ids: np.ndarray, owners: np.ndarray) -> Iterator[tuple[str, float]]:
    tokenizer, length = self.stream.tokenizer, ids.shape[1]
    found = {n.index: n.taken_over for n in nearest_images(self.stream.source, self.neighbours, SOME)}
    taken_over = np.stack([tokenizer.encode(found.get(int(i), ""), length) for i in records])
    images, texts = (token_counts(rows, tokenizer.vocab) for rows in (taken_over, ids))
    for name, value in recalls(images, texts, self.stream.kinds(ids), owners, self.stream.settings.equal_texts):
      if name.endswith("_r1"):
        yield f"pixel_{name}", value


def token_counts(ids: np.ndarray, vocab: int) -> np.ndarray:
  """Numbers of each token in each text, without padding: [N, T] -> float32 [N, vocab], unit length."""
  counts = np.zeros((len(ids), vocab), np.float32)
  np.add.at(counts, (np.arange(len(ids))[:, None], ids), 1)
  counts[:, PAD] = 0
  return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def match_logits(
  stream: Stream, params, records: np.ndarray, ids: np.ndarray, image: np.ndarray, text: np.ndarray
) -> np.ndarray:
  """The matching head's scores of chosen pairs, whichever direction wants them: each is scored once.

  Goes through the images anew, an eighth of a batch at a time: to read and encode one costs far less than to score
  its texts, so that nothing of the images is kept. (The image tokens of COCO's 5,000 test images, 577 x 768 each in
  BLIP, would be 8.9 GB in float32.) Images with about as many texts share a batch, and an image's keys and values
  are computed once for `TEXTS` texts. COCO with 256 candidates has 7.7 million pairs, 1.2 GB on the host.

  Args:
    stream: of the images.
    params: of the model.
    records: int [N], where in the stream's source each image is.
    ids: int32 [M, L], the texts' tokens.
    image: int [P], which of the N images a pair has. The same on every process, as `text`.
    text: int [P], which of the M texts.

  Returns:
    float32 [P], NaN where an image could be read before, but no longer.
  """
  ids, kind = np.unique(ids, axis=0, return_inverse=True)
  pairs, where = np.unique(image * np.int64(len(ids)) + kind.reshape(-1)[text], return_inverse=True)
  image, kind = np.divmod(pairs, len(ids))
  counts = np.bincount(image, minlength=len(records))
  first = np.cumsum(counts) - counts
  order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]

  at_once = max(stream.batch // 8, 1) * max(stream.frames, 1)
  settings = dataclasses.replace(stream.settings, batch=at_once, limit=0)
  view = View(stream.source, records[order], lambda index, record: record.label)
  view.name = f"{view.name}, matching"
  again = Stream(stream.config, settings, stream.forward, stream.tokenizer, view, stream.wants._replace(most=1))
  width, places, logits = min(TEXTS, len(ids)), [], Lagged()
  for i, batch in enumerate(again):
    encoded = stream.forward.encode(params, batch.device["image"])._replace(embedding=None)
    rows = order[i * again.batch : (i + 1) * again.batch]
    begin, count = np.zeros((2, again.batch, 1), np.int64)
    begin[: len(rows), 0], count[: len(rows), 0] = first[rows], counts[rows]
    count[batch.rows["weight"] == 0] = 0
    for start in range(0, count.max(), width):
      slot = start + np.arange(width)
      places.append(np.where(slot < count, begin + slot, -1))  # -1: a text that fills up
      chunk = stream.forward.put({"text": ids[kind[places[-1][again.host_rows]]]})["text"]
      logits.append(stream.forward.score(params, encoded, chunk).match_logit)
  out = np.full(len(pairs), np.nan, np.float32)
  if places:
    places, logits = np.concatenate(places), logits.concatenate()
    out[places[places >= 0]] = logits[places >= 0]
  return out[where.reshape(-1)]


def recalls(
  images: np.ndarray,
  texts: np.ndarray,
  kind: np.ndarray,
  owners: np.ndarray,
  equal_texts: bool = False,
  block: int = BLOCK,
  rerank: int = 0,
  match: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[str, float]]:
  """Recalls of embeddings, and of the matching head's order of the best candidates.

  Args:
    images: [N, E], unit length.
    texts: [M, E], unit length.
    kind: int [M], the same for equal texts.
    owners: [M], the image that each text belongs to, ascending.
    equal_texts: whether texts equal to an image's own are right for it too.
    block: queries at a time.
    rerank: candidates a query; 0: none.
    match: (images int [P], texts int [P]) -> [P], the logits of these pairs.

  Yields:
    'i2t_r1', 'i2t_r5', 'i2t_r10', 't2i_r1', ... with shares; with `rerank` 'i2t_r1_reranked', ... too. Images without
    texts are only candidates.
  """
  counts = np.bincount(owners, minlength=len(images))
  # What makes a text an image's own: its kind, or its number.
  mark = kind if equal_texts else np.arange(len(owners))
  slot = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
  marks = np.full((len(images), max(counts.max(initial=0), 1)), -1)
  marks[owners, slot] = mark
  asked = np.flatnonzero(counts)  # the images that are queries

  def right_texts(start, stop):
    return np.logical_or.reduce([marks[asked[start:stop], k, None] == mark for k in range(marks.shape[1])])

  def right_images(start, stop):
    return np.logical_or.reduce([mark[start:stop, None] == marks[:, k] for k in range(marks.shape[1])])

  image_ranks = ranks(images[asked], texts, right_texts, block, kind)
  text_ranks = ranks(texts, images, right_images, block)
  yield from _at_depths(image_ranks, text_ranks, "")
  if not rerank:
    return
  # Another processor may round a cosine differently, and all processes have to score the same pairs.
  of_image, of_text = from_first(
    (
      nearest(images[asked], texts, right_texts, rerank, block, kind),
      nearest(texts, images, right_images, rerank, block),
    )
  )
  logits = match(
    np.concatenate([np.repeat(asked, of_image.index.shape[1]), of_text.index.reshape(-1)]),
    np.concatenate([of_image.index.reshape(-1), np.repeat(np.arange(len(texts)), of_text.index.shape[1])]),
  )
  image_scores = logits[: of_image.index.size].reshape(of_image.index.shape) + of_image.cosine
  text_scores = logits[of_image.index.size :].reshape(of_text.index.shape) + of_text.cosine
  yield from _at_depths(
    reranked(image_ranks, image_scores, of_image.right, kind[of_image.index]),
    reranked(text_ranks, text_scores, of_text.right),
    "_reranked",
  )


def _at_depths(image_ranks: np.ndarray, text_ranks: np.ndarray, suffix: str) -> Iterator[tuple[str, float]]:
  for name, rank in (("i2t", image_ranks), ("t2i", text_ranks)):
    for k in DEPTHS:
      yield f"{name}_r{k}{suffix}", recall(rank, k)
