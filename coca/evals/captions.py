"""The decoder's skill at writing: the loss of the true captions, and its own captions beside them.

Where the truth of the images is known (scenes: coca/data/sources/scenes.py), captions are judged by it, too.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data import texts
from coca.data.pipeline import Wants
from coca.data.records import BadRecord, Record, Records
from coca.data.scenes.judge import judge
from coca.data.sources.scenes import SceneSource
from coca.decoding.settings import check_decoding_model
from coca.devices.host import to_host
from coca.evals import caption_metrics
from coca.evals.evaluator import Evaluator
from coca.evals.judged import judged
from coca.evals.pixels import SOME, nearest
from coca.evals.server import image_of, read_images
from coca.evals.stream import Stream, own_texts
from coca.files.threads import read_ahead
from coca.inference.forward import Forward

PIXEL = ("pixel_exact_match", "pixel_bleu1", "pixel_cider", "pixel_true", "pixel_right_parts")  # the last two of scenes
REFERENCES = 16  # of an image, that RefCLIPScore looks at: COCO has up to 7, NoCaps 10
DOMAINS = ("in", "near", "out")  # of NoCaps


class Captions(Evaluator):
  """Loss per token of each record's first text, and a caption for every image.

  Args:
    config, forward, tokenizer: see `Evaluator`.
    settings: the evaluator's: source, batch, limit, decoding, beams, prompt, java_metrics, annotations,
      pixel_neighbours.
    source: images and their texts, the references. Without its `text_key` there are none, and captions are written for
      a server alone.
    neighbours: the source that `settings.pixel_neighbours` names, if any.

  Raises:
    ValueError: the model can't write as `settings` say.
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
    self._prompt = settings.prompt or config.data.prompt
    self._embeds = config.contrastive.heads
    wants = Wants(self._wanted, REFERENCES if self._embeds else 1, ends=False)
    self.stream = Stream(config, settings, forward, tokenizer, source, wants, lambda index, _: index)
    check_decoding_model(self.stream.decoding, config)
    self.records, self.neighbours = source, neighbours
    self._images = read_images(settings.annotations) if settings.annotations else {}
    self._known: dict[int, Known] = {}  # by the record's index; read once
    self._pixels: list[tuple[str, float]] | None = None

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields 'nll' (nats a token, EOS included), 'perplexity', and the captions' scores.

    Where the model embeds images and texts these are 'clip_score' and 'ref_clip_score', and on the first process
    'exact_match' (share of captions with the words of one of their references), those of
    `coca.evals.caption_metrics.scores` and 'examples'; of scenes also what `coca.evals.judged.judged` says. With
    NoCaps' `settings.annotations`, 'bleu1_in' and so on are of the images of a domain. `PIXEL` are the scores of the
    first texts of the nearest training images.
    """
    forward, tokenizer = self.stream.forward, self.stream.tokenizer
    nll, tokens, captions = 0.0, 0.0, {}
    images, true, owners = [], [], []  # for CLIPScore
    writer = forward.writer(params)
    for batch in self.stream:
      local = batch.local
      first = {"text": local["text"][:, 0], "weight": local["weight"] * local["text_weight"][:, 0]}
      loss, count = forward.caption_loss(params, {"image": batch.device["image"], **forward.put(first)})
      nll, tokens = nll + float(to_host(loss)), tokens + float(to_host(count))
      encoded = forward.encode(params, batch.device["image"])
      ids, rows = self.stream.write(writer, batch, encoded), np.flatnonzero(batch.rows["weight"] > 0)
      if self._embeds:
        images.append(to_host(encoded.embedding)[rows])
        row, slot = np.nonzero(batch.rows["text_weight"][rows])
        true.append(batch.rows["text"][rows[row], slot])
        owners.append(row + len(captions))
      captions |= {int(batch.rows["label"][row]): tokenizer.decode(ids[row]) for row in rows}
    mean = nll / tokens if tokens else math.nan
    yield "nll", mean
    yield "perplexity", math.exp(min(mean, 100.0))  # that of a diverged model must not overflow
    if captions and self._embeds:
      length = self.stream.config.model.text.length
      written = np.stack([tokenizer.encode(self._prompt + caption, length) for caption in captions.values()])
      embedded = self.stream.embed_texts(params, np.concatenate([written, *true]))
      score, with_references = caption_metrics.clip_scores(
        np.concatenate(images), embedded[: len(written)], embedded[len(written) :], np.concatenate(owners)
      )
      yield "clip_score", float(np.mean(score))
      if np.isfinite(with_references).any():
        yield "ref_clip_score", float(np.nanmean(with_references))
    if jax.process_index() == 0:
      yield from self._judge(captions)

  def _judge(self, captions: dict[int, str]) -> Iterator[tuple[str, float]]:
    java = self.stream.settings.java_metrics
    yield from self._scores(captions, java)
    if self._images:
      of = {i: image_of(self._images, self._known[i].key) for i in captions if self._known[i].key}
      self.results = [{"image_id": image.id, "caption": captions[i]} for i, image in of.items()]
      for domain in DOMAINS:
        if part := {i: captions[i] for i, image in of.items() if image.domain == domain}:
          yield from ((f"{name}_{domain}", value) for name, value in self._scores(part, java))
    if self.neighbours is not None and self._pixels is None:
      records = self.stream.source
      found = {int(records.indices[n.index]): n.taken_over for n in nearest(records, self.neighbours, SOME)}
      self._pixels = [(f"pixel_{name}", value) for name, value in self._scores(found) if f"pixel_{name}" in PIXEL]
    yield from self._pixels or ()

  def _scores(self, captions: dict[int, str], java: bool = False) -> Iterator[tuple[str, float]]:
    unread = [i for i in captions if i not in self._known]
    found = read_ahead(lambda i: known(self.records, i, self._texts), unread)
    self._known.update(zip(unread, found, strict=True))
    pairs = [(caption, self._known[i].texts) for i, caption in captions.items() if self._known[i].texts]
    yield "exact_match", float(np.mean([matches(*pair) for pair in pairs])) if pairs else math.nan
    yield from caption_metrics.scores([c for c, _ in pairs], [r for _, r in pairs], java)
    yield "examples", float(len(pairs))
    if isinstance(self.records, SceneSource):
      yield from judged(judge(caption, self.records.scene(i)) for i, caption in captions.items())

  def _texts(self, record: Record) -> list[str]:
    source = self.stream.settings.source
    return own_texts(source, record) if source.text_key else []

  def _wanted(self, record: Record) -> list[str]:
    return [self._prompt + text for text in self._texts(record)]

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    if settings.annotations:
      read_images(settings.annotations)

  @staticmethod
  def places(settings: Eval) -> dict[str, str]:
    return {"annotations": settings.annotations} if settings.annotations else {}


class Known(NamedTuple):
  """A record without its image."""

  key: str
  texts: tuple[str, ...]  # none: it can't be read, or has none
  question: str = ""


def known(source: Records, index: int, texts_of=texts.captions) -> Known:
  """A record, with what `texts_of` says of it."""
  key = question = ""
  try:
    record = source[index]
    key, question = record.key, record.question
    return Known(key, tuple(texts_of(record)), question)
  except BadRecord:
    return Known(key, (), question)


def words(text: str) -> list[str]:
  """Lower-case runs of letters, digits and underscores: punctuation and spacing say nothing about an image."""
  return re.findall(r"\w+", text.lower())


def matches(caption: str, references: Sequence[str]) -> bool:
  """True if a caption has the words of a reference, in order (texts without words must be equal as they are)."""
  return any((words(caption) or caption) == (words(r) or r) for r in references)
