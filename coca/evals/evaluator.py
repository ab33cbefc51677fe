"""The protocol of evaluators; those there are stand in `coca.evals.build.KINDS`."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from coca.config import Config, Eval
from coca.config.special import Tokenizer
from coca.data.records import Records
from coca.evals.stream import Stream
from coca.inference.forward import Forward


class Evaluator(Protocol):
  """A kind of evaluator: a class derived from this one, in a file of its own.

  It is made once a run, and says itself which texts and labels it wants of a record (`coca.data.pipeline.Wants`).

  Args:
    config: the run's settings.
    settings: the evaluator's.
    forward: compiled functions.
    tokenizer: the run's.
    source: the records, opened.
    neighbours: the training source that `settings.pixel_neighbours` names, where it names one.

  Raises:
    ValueError: something that the evaluator needs is missing.
  """

  stream: Stream  # of all its records; the contact sheet is drawn from it
  results: Sequence[dict] = ()  # what a server takes of the last run, on the first process; empty: nobody asked for it

  def __init__(
    self, config: Config, settings: Eval, forward: Forward, tokenizer: Tokenizer, source: Records, *neighbours: Records
  ): ...

  def run(self, params) -> Iterator[tuple[str, float]]:
    """Yields names and numbers, on all processes alike; the first process may get more of them."""
    ...

  @staticmethod
  def check(settings: Eval, source: Records, neighbours: Records | None) -> None:
    """Raises ValueError if it won't do what can be told before any record is read.

    Args:
      settings: the evaluator's.
      source: the records, opened.
      neighbours: the training source that `settings.pixel_neighbours` names.
    """

  @staticmethod
  def places(settings: Eval) -> dict[str, str]:
    """Paths and URLs that it opens besides its source, by the names of their settings."""
    return {}
