"""The classes of a run: the names of its training data's labels."""

from collections import defaultdict
from collections.abc import Mapping

from coca.config import Config
from coca.data.questions import read_answers
from coca.data.records import Record, Records
from coca.data.sample import some_records
from coca.data.texts import collapse


def class_names(config: Config, sources: Mapping[str, Records]) -> tuple[str, ...]:
  """Names of the classes, in the order of their ids; none without a classification loss.

  Args:
    config: of the run.
    sources: opened training sources by name. One without labels takes no part in the loss.

  Raises:
    ValueError: no source has labels, two name them differently, or there are not `config.classification.classes`; or
      the file of answers can't be read.
  """
  classes = config.classification.classes
  if not config.classification.weight:
    return ()
  if config.answers_by_classes:
    return _answers(config, sources)
  found = {name: tuple(source.label_names) for name, source in sources.items() if source.label_names}
  if not found:
    raise ValueError(
      f"config.classification.weight needs labels, and none of config.data.sources has any: {', '.join(sources)}. "
      "docs/own-data.md says what each kind takes for labels"
    )
  (first, names), *others = found.items()
  for name, theirs in others:
    if theirs != names:
      raise ValueError(
        f"config.data.sources.{first} and {name} have labels of other names ({len(names)} and {len(theirs)}), so their "
        "ids mean different classes; train on one of them, or set config.classification.weight to 0"
      )
  if len(names) != classes:
    raise ValueError(
      f"config.classification.classes is {classes}, and config.data.sources.{first} has {len(names)} classes; set it "
      f"to {len(names)}"
    )
  return names


def _answers(config: Config, sources: Mapping[str, Records]) -> tuple[str, ...]:
  """The answers that are classes: those of the file, or the most frequent ones, the first of equally frequent ones.

  Answers of a source with an `answer_weight` count so much.
  """
  settings, path = config.classification, config.classification.answers
  if path:
    names, where = read_answers(path), path
  else:
    records = some_records(sources, config.data.tokenizer_texts, config.seed, "answers")
    counts = defaultdict(float)
    for name, _, record in records:
      for text in record.texts if isinstance(record, Record) else ():
        if answer := collapse(text.text):
          counts[answer] += config.data.sources[name].answer_weight
    names, where = sorted(counts, key=counts.__getitem__, reverse=True)[: settings.classes], "config.data.sources"
  if len(names) != settings.classes:
    raise ValueError(
      f"config.classification.classes is {settings.classes}, and {where} has {len(names)} answers; set it to "
      f"{len(names)}"
    )
  return tuple(names)
