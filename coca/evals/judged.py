"""Captions of scenes whose truth is known (coca/data/scenes): how many are true, and what is wrong in the others."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from coca.data.scenes.judge import PARTS, Judgement

VERDICTS = ("true", "partly", "false", "no sentence")


def judged(judgements: Iterable[Judgement]) -> Iterator[tuple[str, float]]:
  """Yields shares of captions by verdict, and shares of what they tell.

  Args:
    judgements: one a caption, as `coca.data.scenes.judge.judge` gives them.

  Yields:
    'true', 'partly', 'false' and 'no_sentence', which make 1; 'complete', the share that is true and leaves no object
    of the scene out; 'right_parts', the mean share of a caption's parts that are right, 0 for no sentence; and
    'object_wrong', 'number_wrong', 'size_wrong', 'relation_wrong' and 'place_wrong': of all parts of that kind that
    captions tell, the share that is wrong; left out where they tell none.
  """
  judgements = list(judgements)
  count, told, wrong = len(judgements) or math.nan, Counter(), Counter()
  for part in (part for judgement in judgements for part in judgement.parts):
    told[part.kind] += 1
    wrong[part.kind] += not part.right
  verdicts = Counter(judgement.verdict for judgement in judgements)
  for verdict in VERDICTS:
    yield verdict.replace(" ", "_"), verdicts[verdict] / count
  yield "complete", sum(bool(judgement) and not judgement.untold for judgement in judgements) / count
  yield "right_parts", math.fsum(map(_right_share, judgements)) / count
  for kind in PARTS:
    if told[kind]:
      yield f"{kind}_wrong", wrong[kind] / told[kind]


def _right_share(judgement: Judgement) -> float:
  return sum(part.right for part in judgement.parts) / len(judgement.parts) if judgement.parts else 0.0
