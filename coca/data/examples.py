"""From a record of a training source to a row of the batch: an image, one of the texts, and what the losses ask for."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from coca.config import Config
from coca.config.regions import Regions
from coca.config.special import PAD, Tokenizer
from coca.data import dialogs, questions, regions, tasks, texts
from coca.data.embeddings import Embedded, states_of
from coca.data.inputs import blank, train_input
from coca.data.parts import Batch
from coca.data.records import BadRecord, Record, ShardedRecords


class _Said(NamedTuple):
  texts: Iterator[str]  # in the order of the draw
  targets: Batch  # what the losses ask for beside them
  names: Sequence[str] = ()  # the classes that the texts are made of


class Examples:
  """The rows of a source, which `coca.data.pipeline.train_batches` describes.

  Args:
    name: of the source in `config.data.sources`.
    source: opened.
    config: the run.
    tokenizer: for the texts.
    labels: names of the classes; looked at where these are answers.
  """

  def __init__(
    self, name: str, source: ShardedRecords, config: Config, tokenizer: Tokenizer, labels: Sequence[str] = ()
  ):
    data = config.data
    self._name, self._source, self._config, self._tokenizer = name, source, config, tokenizer
    self._settings, self._length = data.sources[name], config.model.text.length
    # A text's ids are the row's and tell what it equals; 64, since threads make rows side by side. Nobody changes them.
    self._encode = functools.lru_cache(maxsize=64)(tokenizer.encode)
    self._classes = config.classification.classes if config.classification.weight else 0
    self._answers = {label: i for i, label in enumerate(labels)} if config.answers_by_classes else {}
    self._states = states_of(config)
    self._embedded = Embedded(data.embeddings, name, source, self._states) if data.embeddings else None
    self._unusable = self._blank()

  def __call__(self, index: int, rng: np.random.Generator) -> tuple[Batch, str]:
    """The row of a record, by its number, and ''; or one of weight 0, and why the record is unusable."""
    where = self._name
    try:
      if self._embedded and self._states.labelled:
        where = f"{self._name} {index}"
        return self._features(*self._embedded.labelled(index)), ""
      record = self._source[index]
      where = f"{self._name} {record.key}"
      said = self._said(record, rng)
      image, text = self._seen(index, record, next(said.texts), rng)
    except BadRecord as e:
      return self._unusable, f"{where}: {e}"
    row = {"weight": np.float32(1), "image": image, "hashes": self._hashes(said.names, text, rng)}
    row |= said.targets | self._ids(record, text, rng)
    if self._config.model.kind == "simvlm":
      row["has_image"] = np.float32(not self._settings.text_only)
    if more := self._config.contrastive.texts - 1:
      others = list(itertools.islice(said.texts, more))
      prompt = self._config.data.prompt
      row["more_texts"] = np.stack([self._encode(prompt + other, self._length) for other in others])
      row["more_hashes"] = np.stack([self._hashes(said.names, other, rng) for other in others])
    return row, ""

  def _blank(self) -> Batch:
    """The row of an unusable record."""
    config, states, length = self._config, self._states, self._length
    row = {
      "image": np.ones(states.shape, states.type) if self._embedded else blank(config, config.classification.frames),
      "text": np.zeros(length, np.int32),
      "last": np.int32(0),
      "hashes": np.zeros(2, np.uint32),
      "weight": np.float32(0),
    }
    answering, dialog, more = config.answering, config.dialog, config.contrastive.texts - 1
    if answering.weight:
      row["answers"] = np.zeros((answering.answers, answering.length), np.int32)
      row["answer_weight"] = np.zeros(answering.answers, np.float32)
    if dialog.weight:
      row["dialog"] = np.zeros((1 + dialog.negatives, dialog.length), np.int32)
    if self._answers:
      row["label"], row["share"] = np.full(answering.answers, -1, np.int32), np.zeros(answering.answers, np.float32)
      row["given"] = np.int32(1)
    elif self._classes:
      row["label"] = np.int32(-1)
    if config.model.kind == "simvlm":
      row["has_image"] = np.float32(0)
    if config.self_critical.weight:
      row["references"] = np.array("", object)
    if more:
      row["more_texts"], row["more_hashes"] = np.zeros((more, length), np.int32), np.zeros((more, 2), np.uint32)
    return row

  def _features(self, image: np.ndarray, label: int) -> Batch:
    """The row of what the encoder made of an image before, for a class head. Raises BadRecord."""
    if not 0 <= label < self._classes:
      raise BadRecord("no label")
    return self._unusable | {"weight": np.float32(1), "image": image, "label": np.int32(label)}

  def _said(self, record: Record, rng: np.random.Generator) -> _Said:
    """A record's texts: its captions, a question, the caption of a dialog, or none. Raises BadRecord."""
    config, settings, tokenizer, answering = self._config, self._settings, self._tokenizer, self._config.answering
    if self._answers:
      question = questions.question_of(record)
      label, share = questions.encode_classes(record, self._answers, answering.answers, settings.answer_weight)
      return _Said(iter([question]), {"label": label, "share": share})
    targets = {}
    if self._classes:
      targets["label"] = np.int32(record.label if 0 <= record.label < self._classes else -1)
    if not config.model.text.layers:
      if targets["label"] < 0:
        raise BadRecord("no label")
      return _Said(iter([""]), targets)
    if answering.weight:
      question = questions.question_of(record)
      ids, weight = questions.encode_answers(record, answering, settings.answer_weight, tokenizer)
      return _Said(iter([question]), targets | {"answers": ids, "answer_weight": weight})
    if config.dialog.weight:
      caption = dialogs.caption_of(record)
      return _Said(iter([caption]), targets | {"dialog": dialogs.drawn(record, config.dialog, tokenizer, rng)})
    drawn = texts.draws(record, settings.text, settings.prompts, rng, settings.origins)
    if config.self_critical.weight:
      targets["references"] = np.array("\n".join(texts.captions(record)), object)
    return _Said(drawn, targets, texts.label_names(record) if settings.text == "labels" else ())

  def _seen(self, index: int, record: Record, text: str, rng: np.random.Generator) -> tuple[Regions | np.ndarray, str]:
    """The image, or what stands for it, and the text to that. Raises BadRecord."""
    config, settings = self._config, self._settings
    if config.model.reads_regions:
      asked = ""
      if settings.task:
        other = functools.partial(self._other_text, index, rng)
        asked, text = tasks.pose(settings.task, text, record, config.model.regions.count, other, rng)
      return regions.padded(record.regions, config.model, self._tokenizer, text=asked), text
    if settings.text_only:
      return self._unusable["image"], text
    if self._embedded:
      return self._embedded.state(index, record), text
    image = train_input(record, config, rng, settings.videos)
    if config.data.swap and rng.integers(2):
      return image[::-1], texts.sides_exchanged(text)
    return image, text

  def _other_text(self, index: int, rng: np.random.Generator) -> str:
    """A text of any other record. Raises BadRecord."""
    there = (index + 1 + int(rng.integers(max(len(self._source) - 1, 1)))) % len(self._source)
    settings = self._settings
    return texts.choose(self._source[there], settings.text, settings.prompts, rng, settings.origins)

  def _ids(self, record: Record, text: str, rng: np.random.Generator) -> Batch:
    """The row of the text, or of a question with an answer behind it, and the token that it ends with."""
    config, tokenizer, length, given = self._config, self._tokenizer, self._length, {}
    if self._answers:
      tokens, asked = questions.with_answer(record, tokenizer, rng if config.captioning.weight else None)
      encode = functools.partial(texts.framed, tokens, tokenizer.bos, tokenizer.eos)
      given["given"] = np.int32(min(asked, length - 1))
    elif self._settings.task:
      encode = functools.partial(tasks.encode, tokenizer, config.model.text.vocab, config.data.prompt + text)
    else:
      encode = functools.partial(self._encode, config.data.prompt + text)
    ids = encode(length)
    # A text that is cut ends with EOS for the encoder; the decoder has to write the word in its place.
    last = encode(length, ends=False)[-1] if ids[-1] != PAD else ids[-1]
    return {"text": ids, "last": last} | given

  def _hashes(self, names: Sequence[str], text: str, rng: np.random.Generator) -> np.ndarray:
    return texts.equality(names, self._encode(text, self._length), self._tokenizer, rng)
