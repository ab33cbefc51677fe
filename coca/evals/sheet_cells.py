"""The cells of the contact sheet: images, what the model makes of them, and what is right."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from coca.data.images import decode_eval
from coca.data.inputs import eval_input
from coca.data.records import BadRecord, Record
from coca.data.scenes.judge import Judgement, judge
from coca.data.sources.scenes import SceneSource
from coca.data.texts import captions as texts_of
from coca.devices.host import Lagged, to_host
from coca.evals.captions import Captions, known
from coca.evals.classification import Classification
from coca.evals.dialogs import Dialogs
from coca.evals.evaluator import Evaluator
from coca.evals.retrieval import Retrieval
from coca.evals.stream import Stream, spread
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import ZeroShot

GALLERY = 1000  # images that are searched, at most
TEXTS = 3  # of an image that are shown


@dataclasses.dataclass(frozen=True)
class Cell:
  """One image of the sheet, or a text alone in the place of one."""

  image: np.ndarray | None  # uint8 [S, S, 3]
  truth: tuple[str, ...] = ()  # its texts
  caption: str | None = None  # None: the model writes none
  labels: tuple[str, ...] = ()  # best first
  question: str = ""  # texts and caption are then answers to it; or a text that is judged, and these are its class
  judgement: Judgement | None = None  # of the caption, where the truth is known
  maps: tuple[np.ndarray, ...] = ()  # [h, w], where the contrastive and the generative pooler look
  is_right: bool = False  # what was searched for; of a caption, that is seen by its words


def held_out_cells(evaluator: Evaluator, params, count: int) -> list[Cell]:
  """Looks at images spread over an evaluator's source; the first process gets the cells of its own rows."""
  stream, classifier = evaluator.stream, evaluator if isinstance(evaluator, (ZeroShot, Classification)) else None
  vqa = evaluator if isinstance(evaluator, Vqa) else None
  source, config, forward = stream.source, stream.config, stream.forward
  scorer = classifier.scorer(params) if classifier else None
  cells = []
  judges = isinstance(evaluator, Classification) and config.has_text_head  # texts, by a decoder that writes none now
  writes = vqa or (forward if config.model.writes and not judges else None)
  writer = writes.writer(params) if writes else None
  for batch in _few(stream, count):
    captions = top = None
    maps = ()
    if vqa:
      captions = vqa.answer(params, writer, batch)
    elif writer is not None:
      encoded = forward.encode(params, batch.device["image"])
      captions = [stream.tokenizer.decode(row) for row in stream.write(writer, batch, encoded)]
    if isinstance(evaluator, Captions) and config.model.kind == "coca" and not stream.frames:
      maps = [to_host(x) for x in forward.attention_maps(params, batch.device["image"]) if x is not None]
    if scorer:
      top = np.argsort(-scorer(batch), axis=1)
    if jax.process_index():
      continue
    for i, row in enumerate(stream.host_rows):
      index = int(batch.rows["label"][row])
      texts = _truths(evaluator, source, index) if batch.rows["weight"][row] else ()
      if texts:
        caption = None if captions is None else captions[row]
        # Each name once: two classes may have one.
        labels = () if top is None else tuple(dict.fromkeys(classifier.names[k] for k in top[row]))[:3]
        question = stream.tokenizer.decode(batch.rows["text"][row, 0]) if vqa or judges else ""
        is_scene = caption is not None and isinstance(source.source, SceneSource)
        judgement = judge(caption, source.source.scene(int(source.indices[index]))) if is_scene else None
        seen = tuple(m[row] if m.ndim == 3 else m[row].mean(0) for m in maps)
        image = (
          _pixels(source, index, config.model.image.size)
          if config.model.reads_regions
          else np.asarray(batch.local["image"][i])
        )
        image = _tiled(image) if image.ndim == 4 else image
        cells.append(Cell(image, texts, caption, labels, question, judgement, seen))
  return cells


def _tiled(images: np.ndarray) -> np.ndarray:
  """A pair side by side, frames of a video [F, S, S, 3] line by line in a square, with white for those that lack."""
  across = 2 if len(images) == 2 else math.ceil(math.sqrt(len(images)))
  lacking = -len(images) % across
  images = np.concatenate([images, np.full((lacking, *images.shape[1:]), 255, images.dtype)])
  return np.vstack([np.hstack([*images[n : n + across]]) for n in range(0, len(images), across)])


def _truths(evaluator: Evaluator, source, index: int) -> tuple[str, ...]:
  """The true texts of a record of the evaluator's stream; of a classifier, the name of its class; of a dialog, the
  question with its answer."""
  if isinstance(evaluator, Dialogs):  # whose stream has numbers for labels
    return known(source.source, int(source.indices[index]), _answered).texts
  names = evaluator.names if isinstance(evaluator, Classification) else ()

  def class_of(record):
    return (names[record.label],) if record.label >= 0 else ()  # -1: of a class that the model lacks

  return known(source, index, class_of if names else texts_of).texts


def _answered(record: Record) -> tuple[str, ...]:
  answers = record.texts if 0 <= record.label < len(record.texts) else ()
  return (f"{record.question} {answers[record.label].text}" if answers else record.question,)


def _pixels(source, index: int, size: int) -> np.ndarray:
  """The image behind regions, grey where their source has none."""
  try:
    return decode_eval(source[index].image, size)
  except BadRecord:
    return np.full((size, size, 3), 127, np.uint8)


def attention_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
  """The maps of some cells over their images, a list a pooler."""
  poolers = zip(*(cell.maps for cell in cells), strict=True)
  return [[Cell(cell.image, maps=(m,)) for cell, m in zip(cells, maps, strict=True)] for maps in poolers]


def retrieval_cells(evaluator: Retrieval, params, columns: int, texts: int = 2) -> tuple[list[Cell], list[Cell], int]:
  """Searches up to `GALLERY` images and their first texts, in both directions.

  Args:
    evaluator: of the images and texts.
    params: of the model.
    columns: a text and the images that are nearest to it, or this many images with the texts nearest to them.
    texts: that are searched for.

  Returns:
    the cells of texts with their images, those of images with their texts, and the number of images searched; on all
    processes but the first, no cells.
  """
  stream = evaluator.stream
  embedded, ids, index = Lagged(), [], []
  for batch in _few(stream, GALLERY):
    embedded.append(stream.forward.embed_images(params, batch.device["image"]))
    ids.append(batch.rows["text"][:, 0])
    index.append(np.where(batch.rows["text_weight"][:, 0] * batch.rows["weight"] > 0, batch.rows["label"], -1))
  index, ids = np.concatenate(index), np.concatenate(ids)
  known = index >= 0
  index, ids = index[known], ids[known]
  if not len(index):
    return [], [], 0
  scores = embedded.concatenate()[known] @ stream.embed_texts(params, ids).T
  if jax.process_index():
    return [], [], len(index)
  kind, said = stream.kinds(ids), [stream.wants.texts(stream.source[int(i)])[0] for i in index]

  def image(k):
    try:
      found = eval_input(stream.source[int(index[k])], stream.config, 1 if stream.frames else 0)
      return found[0] if stream.frames else found  # of a video, the frame in the middle
    except BadRecord:  # it could be read before
      return None

  found, asked = [], []
  for text in spread(len(index), texts):
    found.append(Cell(None, truth=(said[text],)))
    for k in np.argsort(-scores[:, text])[: columns - 1]:
      found.append(Cell(image(k), is_right=bool(kind[k] == kind[text])))
  for k in spread(len(index), columns + texts)[texts:]:  # others than those
    best = tuple(dict.fromkeys(said[text] for text in np.argsort(-scores[k])))[:TEXTS]
    asked.append(Cell(image(k), truth=(said[k],), labels=best))
  return found, asked, len(index)


def _few(stream: Stream, count: int) -> Stream:
  """Batches of at most `count` records of `stream.source`, with one text each; labels are their numbers there.

  A batch is as large as the stream's, for which the functions are compiled.
  """
  settings, wants = dataclasses.replace(stream.settings, limit=count), stream.wants._replace(most=1)
  return Stream(
    stream.config,
    settings,
    stream.forward,
    stream.tokenizer,
    stream.source,
    wants,
    lambda index, _: index,
    stream.batch,
  )
