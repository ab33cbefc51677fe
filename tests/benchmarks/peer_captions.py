"""Words and scores of captions beside pycocoevalcap's, whose words a Java program tells.

    PEER/bin/python tests/benchmarks/peer_captions.py
    PEER/bin/python tests/benchmarks/peer_captions.py --captions=captions.txt
    PEER/bin/python tests/benchmarks/peer_captions.py --suites=OUT

The last scores the file for NoCaps' server that `suites.py OUT --model=...` left, by domain, from pycocotools on.
PEER has pycocoevalcap 1.2, absl-py and NumPy. Captions are those of a file, one a line, or the sentences in the
docstrings of Python's standard library, which have more marks, numbers and names than people write below images. 5,000
of them, changed, stand beside up to six others; prints the share of words that differ, and how far scores are apart.
"""

import argparse
import ast
import contextlib
import difflib
import io
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from pycocotools.coco import COCO

sys.path.insert(0, str(Path(__file__).parents[2]))
from coca.evals.caption_metrics import bleu, cider_d, rouge_l
from coca.evals.ptb import tokens

PAIRS, MOST = 5000, 6  # captions that are scored, and references of one


def docstrings() -> Iterator[str]:
  """Sentences of 4 to 20 words."""
  for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
    for node in ast.walk(ast.parse(path.read_bytes())):
      if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        for text in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
          if 4 <= len(text.split()) <= 20 and re.fullmatch(r"[A-Z][^<>=_`\\]*", text):
            yield " ".join(text.split())


def changed(text: str, captions: list[str], draw: random.Random) -> str:
  """A caption with up to five words more or less."""
  words = text.split()
  for _ in range(draw.randrange(6)):
    at = draw.randrange(len(words))
    if len(words) > 1 and draw.random() < 0.5:
      words.pop(at)
    else:
      words.insert(at, draw.choice(draw.choice(captions).split()))
  return " ".join(words)


def theirs_of(true: dict, said: dict) -> dict[str, float]:
  """pycocoevalcap's scores of words with spaces between, by coca's names."""
  with contextlib.redirect_stdout(io.StringIO()):
    means = Bleu(4).compute_score(true, said)[0], Rouge().compute_score(true, said)[0]
    return {"bleu4": means[0][3], "rouge_l": means[1], "cider": Cider().compute_score(true, said)[0]}


def nocaps(out: Path) -> None:
  """The evaluator's numbers beside those of its file for the server."""
  with contextlib.redirect_stdout(io.StringIO()):
    true = COCO(str(out / "nocaps" / "nocaps_val_4500_captions.json"))
    said = true.loadRes(str(out / "results" / "nocaps_captions_results.json"))
  numbers = json.loads((out / "results" / "results.json").read_text())["results"]["nocaps_captions"]["numbers"]
  for domain in ("", "in", "near", "out"):
    ids = [i for i in said.getImgIds() if true.imgs[i]["domain"].startswith(domain)]
    asked = (PTBTokenizer().tokenize({i: by.imgToAnns[i] for i in ids}) for by in (true, said))
    for name, other in theirs_of(*asked).items():
      mine = numbers[f"{name}_{domain}" if domain else name]
      print(f"{domain:<5} {name:<8} {mine:.6f}, {abs(mine - other):.1e} apart")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--captions", type=Path, help="a file, one a line")
  parser.add_argument("--suites", type=Path, help="what suites.py wrote")
  args = parser.parse_args()
  if args.suites:
    nocaps(args.suites)
    return
  lines = args.captions.read_text(encoding="utf-8").splitlines() if args.captions else docstrings()
  captions = list(dict.fromkeys(filter(None, (" ".join(line.split()) for line in lines))))
  theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
  wrong = count = 0
  for i, text in enumerate(captions):
    mine, other = tokens(text), theirs[i][0].split()
    same = sum(b.size for b in difflib.SequenceMatcher(None, mine, other, autojunk=False).get_matching_blocks())
    wrong, count = wrong + max(len(mine), len(other)) - same, count + len(other)
  print(f"{len(captions)} captions, {count} words, {wrong} of which differ: {wrong / count:.4%}")

  draw = random.Random(0)
  based = [draw.choice(captions) for _ in range(PAIRS)]
  true = [[tokens(changed(text, captions, draw)) for _ in range(draw.randint(1, MOST))] for text in based]
  said = [tokens(changed(text, captions, draw)) for text in based]
  asked = (
    {i: [" ".join(words) for words in texts] for i, texts in enumerate(true)},
    {i: [" ".join(words)] for i, words in enumerate(said)},
  )
  with contextlib.redirect_stdout(io.StringIO()):
    scored = Bleu(4).compute_score(*asked)[0], Rouge().compute_score(*asked)[1], Cider().compute_score(*asked)[1]
  for scorer, other in zip((bleu, rouge_l, cider_d), scored, strict=True):
    mine = np.array(scorer(said, true))
    print(f"{scorer.__name__:<8} {mine.mean():.6f}, farthest apart {np.abs(mine - np.array(other)).max():.1e}")


if __name__ == "__main__":
  main()
