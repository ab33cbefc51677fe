"""A contact sheet: held-out images, what the model writes about them, and what they are."""

import dataclasses
import textwrap
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from coca.devices.host import to_host
from coca.evals.captions import matches, references
from coca.evals.evaluator import Evaluator
from coca.evals.fonts import families_for
from coca.evals.stream import Stream
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import ZeroShot
from coca.files.writing import writing

RIGHT, WRONG = "#1a7f37", "#57606a"
WRAP = 28  # characters a line under an image


@dataclasses.dataclass(frozen=True)
class Cell:
  """One image of the sheet."""

  image: np.ndarray  # uint8 [S, S, 3]
  truth: tuple[str, ...]  # its texts
  caption: str | None = None  # None: the model writes none
  labels: tuple[str, ...] = ()  # best first
  question: str = ""  # texts and caption are then answers to it


def write_contact_sheet(evaluators: dict[str, Evaluator], params, path, count: int = 30) -> None:
  """Draws what the model makes of the images of its first zero-shot evaluator, or of its first one if it has none.

  All processes call this; the first one writes the file.

  Args:
    evaluators: from `coca.evals.build.make_evaluators`; without any, nothing is drawn.
    params: of the model.
    path: of the PNG file, or its URL.
    count: of images, spread over the source.
  """
  if not evaluators:
    return
  name = next((name for name, e in evaluators.items() if isinstance(e, ZeroShot)), next(iter(evaluators)))
  cells = held_out_cells(evaluators[name], params, count)
  if cells:
    true = "question and true answer" if isinstance(evaluators[name], Vqa) else "the true text"
    title = f"{name}: {true} in bold, the caption in quotes, the likeliest labels below; green is right"
    contact_sheet(cells, path, title=title)


def held_out_cells(evaluator: Evaluator, params, count: int) -> list[Cell]:
  """Looks at images spread over an evaluator's source; the first process gets the cells of its own rows."""
  stream, zero_shot = evaluator.stream, evaluator if isinstance(evaluator, ZeroShot) else None
  vqa = evaluator if isinstance(evaluator, Vqa) else None
  settings, wants = dataclasses.replace(stream.settings, limit=count), stream.wants._replace(most=1)
  source, config = stream.source, stream.config
  classes = zero_shot.classes(params) if zero_shot else None
  cells = []
  writes = vqa or (stream.forward if config.model.text.multimodal_layers else None)
  writer = writes.writer(params) if writes else None
  few = Stream(config, settings, stream.forward, stream.tokenizer, source, wants, lambda index, _: index, stream.batch)
  for batch in few:
    captions = top = None
    if vqa:
      captions = vqa.answer(params, writer, batch)
    elif writer is not None:
      captions = [stream.tokenizer.decode(row) for row in few.write(params, writer, batch)]
    if zero_shot:
      embedded = to_host(stream.forward.embed_images(params, batch.device["image"]))
      top = np.argsort(-embedded @ classes.T, axis=1)
    if jax.process_index():
      continue
    for image, row in zip(batch.local["image"], few.host_rows, strict=True):
      texts = references(source, int(batch.rows["label"][row])) if batch.rows["weight"][row] else ()
      if texts:
        caption = None if captions is None else captions[row]
        # Each name once: two classes may have one.
        labels = () if top is None else tuple(dict.fromkeys(zero_shot.names[k] for k in top[row]))[:3]
        question = stream.tokenizer.decode(batch.rows["text"][row, 0]) if vqa else ""
        cells.append(Cell(np.asarray(image), texts, caption, labels, question))
  return cells


def contact_sheet(cells: Sequence[Cell], path, columns: int = 6, title: str = "") -> None:
  """Draws cells as a PNG: the image, its first text, the caption and the likeliest labels, right ones in green.

  Args:
    cells: at least one.
    path: of the PNG file, or its URL.
    columns: cells a row.
    title: above all.

  Raises:
    ValueError: there are no cells.
  """
  if not cells:
    raise ValueError("a contact sheet needs at least one image")
  rows = -(-len(cells) // columns)
  families, missing = families_for(text for cell in cells for text in (title, *(line for line, *_ in _lines(cell))))
  if missing:
    title = (
      f"{title}\nBoxes are characters that no font here has, as U+{ord(missing[0]):04X}; Noto fonts have them "
      "(Debian: fonts-noto-core, fonts-noto-cjk)"
    ).strip()
  width, height, top = 2.2 * columns, 3.3 * rows, 0.5 if title else 0.1  # inches
  figure = Figure(figsize=(width, height + top), dpi=100)
  FigureCanvasAgg(figure)  # not pyplot: no display, no global state, any thread
  if title:
    figure.text(
      0.5, 1 - 0.25 / (height + top), title, ha="center", va="center", fontsize=9 if missing else 12, family=families
    )
  for i, cell in enumerate(cells):
    left, below = 2.2 * (i % columns), 3.3 * (rows - 1 - i // columns)
    place = [(left + 0.1) / width, (below + 1.2) / (height + top), 2.0 / width, 2.0 / (height + top)]
    _draw(figure.add_axes(place), cell, families)
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing")  # the title says it
    with writing(path) as file:
      figure.savefig(file, format="png")


def _lines(cell: Cell) -> list[tuple[str, str, str]]:
  """Text, colour and weight of what stands under an image."""
  lines = [(f"{cell.question} {cell.truth[0]}".strip(), "black", "bold")]
  if cell.caption is not None:
    lines.append((f"“{cell.caption}”", _colour(matches(cell.caption, cell.truth)), "normal"))
  lines += [(f"{i}. {label}", _colour(matches(label, cell.truth)), "normal") for i, label in enumerate(cell.labels, 1)]
  return lines


def _draw(axes, cell: Cell, families: Sequence[str]) -> None:
  axes.axis("off")
  axes.imshow(cell.image, interpolation="bicubic")
  lines = _lines(cell)
  if len(lines) > 1 and lines[1][1] == RIGHT:
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=RIGHT, linewidth=4))
  y = -4.0  # points below the image
  for i, (text, colour, weight) in enumerate(lines):
    wrapped = textwrap.wrap(text, WRAP, max_lines=2 if i < 2 else 1, placeholder="…") or [""]
    # parse_math: a caption with two dollar signs is not a formula.
    axes.annotate(
      "\n".join(wrapped),
      (0, 0),
      (0, y),
      xycoords="axes fraction",
      textcoords="offset points",
      va="top",
      fontsize=8,
      color=colour,
      weight=weight,
      parse_math=False,
      family=families,
    )
    y -= 11.0 * len(wrapped)


def _colour(right: bool) -> str:
  return RIGHT if right else WRONG
