"""A page of results, in one file that loads nothing: the table, and a section for each data set."""

import html
from collections import Counter
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from coca.data.records import BadRecord
from coca.evals.captions import Captions
from coca.evals.classification import Classification
from coca.evals.evaluator import Evaluator
from coca.evals.retrieval import Retrieval
from coca.evals.sheet_cells import Cell, held_out_cells, retrieval_cells
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import Answers, ZeroShot
from coca.inference import images
from coca.inference.page import STYLE, data_url

SHOWN = 12  # images of a kind
PAIRS = 20  # confusions
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MORE_STYLE = """
main { margin-bottom: 2rem }
table { border-collapse: collapse; margin: 0 0 1.5rem }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; font-variant-numeric: tabular-nums }
th { opacity: .6; font-weight: normal }
summary { cursor: pointer; margin: .5rem 0 }
.right { color: #1a7f37 }
.wrong { color: #cf222e }
.small { opacity: .6; font-size: 85%; overflow-wrap: anywhere }
"""


def page(title: str, table: Sequence[Sequence], sections: Iterable[str]) -> str:
  """The whole page; `table` has a line of heads first, and `sections` come from `section`."""
  title = html.escape(title)
  return (
    '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{title}</title>\n'
    f"<style>{STYLE}{MORE_STYLE}</style>\n<h1>{title}</h1>\n{_table(table)}{''.join(sections)}</html>\n"
  )


def section(name: str, evaluator: Evaluator, params, numbers: dict[str, float], problems: Sequence[str]) -> str:
  """The images of a data set and what the model makes of them: HTML. All processes call this; the first gets the whole.

  Args:
    name: of the data set.
    evaluator: that has run, a zero_shot one with `keeps`.
    params: of the model.
    numbers: what it told.
    problems: of the records, such as those that can't be read.
  """
  parts = [f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>\n<p>{html.escape(evaluator.stream.source.name)}</p>']
  parts.append(_table([("number", "value"), *((key, f"{value:.4f}") for key, value in numbers.items())]))
  if isinstance(evaluator, ZeroShot) and evaluator.answers is not None:
    parts += _classes(evaluator, evaluator.answers) if not jax.process_index() else []
  elif isinstance(evaluator, Retrieval):
    found, asked, searched = retrieval_cells(evaluator, params, 6, 4)
    parts.append(_figures(f"A text and the nearest images among {searched:,}", map(_of_text, found)))
    parts.append(_figures("An image, its text, and the nearest texts", map(_of_image, asked)))
  elif isinstance(evaluator, (Captions, Vqa, Classification)):
    cells = held_out_cells(evaluator, params, 2 * SHOWN)
    parts.append(_figures("What the model says, and beside it what is true", map(_of_caption, cells)))
  if problems:
    listed = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    parts.append(f"<details><summary>{len(problems)} problems of the data</summary><ul>{listed}</ul></details>")
  return "\n".join(parts)


def _classes(evaluator: ZeroShot, answers: Answers) -> list[str]:
  names = evaluator.names
  if not len(answers.label):
    return []
  right, taken = answers.rank < 1, answers.best[:, 0]
  other = taken != answers.label  # a tie is wrong, and no confusion
  pairs = Counter(zip(answers.label[other].tolist(), taken[other].tolist(), strict=True))
  mistaken = {}
  for (label, other), count in pairs.most_common():
    mistaken.setdefault(label, (other, count))
  images_of, hits = np.bincount(answers.label), np.bincount(answers.label, right)
  rows: list[Sequence] = [("class", "images", "right", "most often taken for")]
  for label in sorted(np.flatnonzero(images_of), key=lambda k: hits[k] / images_of[k]):
    other, count = mistaken.get(label, ("", 0))
    said = f"{names[other]} ({count})" if count else ""
    rows.append((names[label], images_of[label], f"{hits[label] / images_of[label]:.3f}", said))
  confusions = [("class", "taken for", "images")]
  confusions += [(names[label], names[other], count) for (label, other), count in pairs.most_common(PAIRS)]
  margin = answers.cosine[:, 0] - answers.cosine[:, 1] if answers.cosine.shape[1] > 1 else answers.cosine[:, 0]
  surest = np.argsort(-margin, kind="stable")
  return [
    f"<details open><summary>{len(rows) - 1} classes, the worst first</summary>{_table(rows)}</details>",
    f"<details><summary>Most frequent confusions</summary>{_table(confusions)}</details>",
    _figures("Wrong, and surest of it", (_of_answer(evaluator, answers, i) for i in surest[~right[surest]][:SHOWN])),
    _figures("Right, and surest of it", (_of_answer(evaluator, answers, i) for i in surest[right[surest]][:SHOWN])),
  ]


def _of_answer(evaluator: ZeroShot, answers: Answers, i: int) -> tuple[np.ndarray | None, list[tuple[str, str]]]:
  stream, names = evaluator.stream, evaluator.names
  try:
    record = stream.source[int(answers.index[i])]
    image, key = images.decoded(record.image, stream.config), record.key
  except BadRecord:  # it could be read before
    image, key = None, ""
  said = [("right" if answers.rank[i] < 1 else "", names[answers.label[i]])]
  for k, cosine in zip(answers.best[i, :3], answers.cosine[i], strict=False):
    said.append(("" if k == answers.label[i] else "wrong", f"{cosine:.3f} {names[k]}"))
  return image, [*said, ("small", key)]


def _of_text(cell: Cell):
  return cell.image, [("", text) for text in cell.truth] + [("right", "its image")] * cell.is_right


def _of_image(cell: Cell):
  return cell.image, [("", cell.truth[0])] + [("right" if t in cell.truth else "wrong", t) for t in cell.labels]


def _of_caption(cell: Cell):
  said = [("right" if cell.caption in cell.truth else "wrong", cell.caption)] if cell.caption is not None else []
  asked = [("small", cell.question)] if cell.question else []
  labels = [("right" if label in cell.truth else "wrong", label) for label in cell.labels]
  return cell.image, asked + said + labels + [("", text) for text in cell.truth]


def _figures(title: str, cells: Iterable[tuple[np.ndarray | None, list[tuple[str, str]]]]) -> str:
  """Images with lines of (class of the style, text) below each."""
  shown = []
  for pixels, lines in cells:
    image = f'<img loading="lazy" alt="" src="{data_url(pixels)}">' if pixels is not None else ""
    said = "".join(f'<p class="{kind}">{html.escape(text) or "&nbsp;"}</p>' for kind, text in lines)
    shown.append(f"<figure>{image}<figcaption>{said}</figcaption></figure>")
  return f"<h3>{html.escape(title)}</h3>\n<main>{''.join(shown)}</main>" if shown else ""


def _table(rows: Sequence[Sequence]) -> str:
  head, *body = (
    "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in row)
    for row, kind in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
  )
  return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>\n"
