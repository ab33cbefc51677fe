"""VQA accuracy: how many of the annotators gave the answer, by the rules of the VQA v2 evaluation.

An answer is right if three others gave it: min(matches / 3, 1), averaged over the sets that leave one annotator out.
The variant is that of the VQA v2 evaluation code, whose oddities decide some answers:

- New lines and tabs become spaces, and spaces at the ends are dropped, always. All else is normalised only where the
  annotators differ: where all ten wrote "2", "two" is wrong, and "Yes" is not "yes".
- Punctuation is dropped if it stands beside a space anywhere in the answer, or if the answer has a comma between digits
  (1,000); else a space takes its place. Colons and apostrophes stay. Full stops go unless a digit follows.
- Then: lower case; number words up to ten are digits, and 'none' is 0; articles are dropped; contractions get the
  apostrophe they lack, but not where that could be another word (its, well, ill).
"""

import re
from collections.abc import Sequence

import numpy as np

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = {
  "none": "0",
  "zero": "0",
  "one": "1",
  "two": "2",
  "three": "3",
  "four": "4",
  "five": "5",
  "six": "6",
  "seven": "7",
  "eight": "8",
  "nine": "9",
  "ten": "10",
}
# By ending. A contraction is also known with any one of its apostrophes left out.
_STEMS = {
  "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
  "n't've": "could had might should would",
  "'ve": "could might must not should they we what where who would you",
  "'d": "he how it somebody someone something there they where who you",
  "'d've": "he it she somebody someone something there they we who you",
  "'ll": "how it somebody someone something they what who why you",
  "'s": "he how somebody someone that there what when where who why",
  "'re": "there they what why you",
  "": "ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've",
}
CONTRACTIONS = {
  whole[: m.start()] + whole[m.end() :]: whole
  for ending, stems in _STEMS.items()
  for whole in (stem + ending for stem in stems.split())
  for m in re.finditer("'", whole)
}


def normalise(answer: str) -> str:
  """An answer in the form in which different annotators' answers are compared; see the top of this file."""
  drop = re.search(r"\d,\d", answer) is not None
  out = answer
  for mark in PUNCTUATION:
    out = out.replace(mark, "" if drop or f"{mark} " in answer or f" {mark}" in answer else " ")
  out = re.sub(r"\.(?!\d)", "", out)
  words = (NUMBERS.get(word, word) for word in out.lower().split())
  return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, annotations: Sequence[str]) -> float:
  """Accuracy of one answer.

  Args:
    answer: what the model says.
    annotations: what each of the annotators said, ten in VQA v2. With fewer than four no set that leaves one out has
      three matches, and so all that are left are enough; one annotation is compared as it is.

  Returns:
    between 0 and 1; with ten annotations 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3 or more matches.

  Raises:
    ValueError: there are no annotations.
  """
  if not len(annotations):
    raise ValueError("VQA accuracy needs at least one annotator's answer to compare with")
  answer, *annotations = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *annotations))
  if len(set(annotations)) > 1:
    answer, *annotations = map(normalise, (answer, *annotations))
  matches = np.array([text == answer for text in annotations])
  others = matches.sum() - matches if len(matches) > 1 else matches
  enough = np.clip(len(matches) - 1, 1, 3)
  return float(np.minimum(others, enough).sum() / (enough * len(matches)))
