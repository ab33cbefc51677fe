"""Makes captions.json: captions' words, and their scores, by pycocoevalcap 1.2 with Java.

pip install pycocoevalcap==1.2 && python tests/evals/golden/make_captions.py
"""

import json
import random
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

SENTENCES = """A dog's ball isn't on the beach, it's in the snow.
Two cats are left of a big red apple (and a pear).
The man can't see what he'd like; they're behind the tree!
A black-and-white cow stands beside St. Mary's church at 10:30 a.m.
A sign says "No. 5 bus" and 'stop here'.
a woman who cannot ski falls down... twice
The U.S. flag hangs 3.5 m above 1,000 people.
50% off: shoes for $5, socks for £2 and hats for 50¢
Rock 'n' roll band of the '60s plays in Washington, D.C.
The plane's wing -- or is it the tail? -- is 1/2 hidden.
mr. smith and Dr. Jones eat mac & cheese on Wed. night
An AT&T van is parked/standing near the A/C unit.
A boy with a t-shirt that says C++ looks at www.example.com
What's that?! A kite, of course!!
the boys' bikes and the girls' dolls are gonna be sold
It's 5 o'clock, and y'all wouldn't believe the sun's colour.
A \u201ccurly\u201d cat\u2019s tail \u2013 a long one \u2013 isn\u2019t \u2018short\u2019\u2026
[a] {b} <b>bold</b> sheep * with a star
A man,woman and child.The dog watches
Ma'am, here are mid-1980s photos #tbt @home
half a pizza, ½ a pie and 1½ cakes at 12/25/2010
a cat
A man standing next to a U.S.-made truck with 18 wheels.
Wash. state ferry; e.g. the one at 5 p.m.
several people etc... on a so-called "beach" :)
A café in front of the naïve painter's house \u2603
""".splitlines()


def changed(text: str, draw: random.Random) -> str:
  words = text.split()
  for _ in range(draw.randint(0, 4)):
    place = draw.randrange(len(words))
    if draw.random() < 0.5 and len(words) > 1:
      words.pop(place)
    else:
      words.insert(place, draw.choice(draw.choice(SENTENCES).split()))
  return " ".join(words)


draw = random.Random(0)
references = [[changed(text, draw) for _ in range(draw.randint(1, 5))] for text in SENTENCES]
captions = [changed(text, draw) for text in SENTENCES]
captions[3], references[4][0] = "!", "..."  # without a word
tokenizer = PTBTokenizer()
true = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
said = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
sentences = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(SENTENCES)})
Path(__file__).with_name("captions.json").write_text(
  json.dumps(
    {
      "words": [[text, sentences[i][0].split()] for i, text in enumerate(SENTENCES)],
      "captions": captions,
      "references": references,
      "bleu": Bleu(4).compute_score(true, said, 0)[0],
      "rouge_l": Rouge().compute_score(true, said)[1].tolist(),
      "cider": Cider().compute_score(true, said)[1].tolist(),
      "meteor": Meteor().compute_score(true, said)[0],
    },
    indent=1,
  )
  + "\n"
)
