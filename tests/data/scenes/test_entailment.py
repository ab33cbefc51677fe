"""Hypotheses about images: right by the coordinates, and each with an image of every label."""

import re
from collections import Counter

import pytest

from coca.config import SceneNoise, Scenes, Source
from coca.data.scenes.compose import World
from coca.data.scenes.entailment import LABELS, Entailment
from coca.data.scenes.judge import judge
from coca.data.sources import open_source
from support.scenes import A_NAME, A_PLACE, A_SIDE, NUMBERS, is_place, is_side, is_size, named

COUNT = 360
GROUP = f"(a|an|one|two|three|four) (?:(big|small) )?{A_NAME}"
SENTENCE = (
  f"(?:{A_PLACE} )?(?:there (?:is|are) |here (?:is|are) |a drawing of |you can see )?"
  f"{GROUP}(?: (?:(?:is|are) )?(?:to the )?{A_SIDE} {GROUP})?(?: {A_PLACE})?"
)


@pytest.fixture(scope="module")
def hypotheses():
  made = Entailment(World("scenes"))
  return [made[i] for i in range(COUNT)]


def label_of(sentence, scene):
  """False parts contradict; what is neither is open."""
  before, number, size, name, side, number2, _, other, after = re.fullmatch(SENTENCE, sentence).groups()
  place, there, others = before or after, named(scene, name), named(scene, other) if other else []
  if place and not is_place(scene, place):
    return "contradiction"
  if side == "behind":
    if len(others) != 1:
      return "contradiction"
    if not there:
      return "neutral" if len(scene.things) == 1 and others[0].size > 0.35 else "contradiction"
    return "entailment" if is_side(scene, there, side, others) else "contradiction"
  if len(there) != NUMBERS[number] or (side and len(others) != NUMBERS[number2]):
    return "contradiction"
  if side and not is_side(scene, there, side, others):
    return "contradiction"
  if all(is_size(thing, size) for thing in there):
    return "entailment"
  return "contradiction" if all(is_size(t, "big" if size == "small" else "small") for t in there) else "neutral"


def test_labels_are_right(hypotheses):
  for made in hypotheses:
    assert label_of(made.sentence, made.scene) == made.label, made
    assert judge(made.caption, made.scene)
  assert len({made.scene for made in hypotheses}) == COUNT


def test_words_and_place_tell_nothing(hypotheses):
  for three in zip(hypotheses[::3], hypotheses[1::3], hypotheses[2::3], strict=True):
    assert {made.label for made in three} == set(LABELS) and len({made.sentence for made in three}) == 1
    assert len({made.number for made in three}) == 1
  for n in range(3):
    labels = Counter(made.label for made in hypotheses[n::3])
    assert all(0.25 < labels[label] / (COUNT / 3) < 0.42 for label in LABELS)


def test_the_rest_of_a_contradiction_may_be_open(hypotheses):
  """A middling thing alone does not tell that a hypothesis is open."""
  by_label = {label: [made.scene for made in hypotheses if made.label == label] for label in LABELS}
  middling = {label: sum(any(0.3 < t.size < 0.45 for t in s.things) for s in by_label[label]) for label in LABELS}
  assert middling["contradiction"] > 0.35 * middling["neutral"]


@pytest.mark.parametrize("split", ["scenes_val", "scenes_new_style", "scenes_new_pairs", "scenes_new_relations"])
def test_other_splits(split):
  world = World(split)
  made = Entailment(world)
  for i in range(9):
    assert label_of(made[i].sentence, made[i].scene) == made[i].label
    if not world.new:
      assert world.holds(made[i].scene)


def test_few_objects_leave_fewer_hypotheses():
  made = Entailment(World("scenes", objects=1))
  assert all(label_of(made[i].sentence, made[i].scene) == made[i].label for i in range(9))


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"split": "scenes_hypotheses_x"}, "no split 'scenes_hypotheses_x' of hypotheses; there are scenes_hypotheses, "),
    ({"question_key": "question"}, r"source\.question_key is 'question': the hypotheses .* take none"),
    ({"scenes": Scenes(noise=SceneNoise(wrong=0.1))}, r"source\.scenes\.noise is for captions"),
    ({"split": "scenes_hypotheses_new_pairs", "scenes": Scenes(objects=1)}, "no scene with at most 1 of the first 100"),
  ],
)
def test_a_source_with_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    open_source(Source(**{"kind": "builtin", "split": "scenes_hypotheses"} | settings), "source")
