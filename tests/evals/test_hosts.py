"""Evaluators on two processes give the numbers of one."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from support import forked
from support.processes import UNCACHED, environment, free_port


def evaluate(folder):
  """Runs all evaluators over a model with random parameters and writes what each process was told."""
  from coca.config import Config, Eval, ImageEncoder, Matching, Model, Poolers, TextDecoder
  from coca.data.records import BadRecord, Record, Text
  from coca.data.tokenizers.sentencepiece import train
  from coca.devices import sharding
  from coca.evals import build, suite
  from coca.evals.contact_sheet import write_contact_sheet
  from coca.evals.folders import DataSet
  from coca.inference.forward import Forward

  texts = [f"{a} {b}" for a in ("red", "green", "blue") for b in ("apple", "pear", "plum")]

  class Source:
    name, problems, label_names = "memory", (), ()

    def __len__(self):
      return 22  # of batches of 8: the last one is not full, and the second process' part of it is empty

    def __getitem__(self, i):
      if i == 6:
        raise BadRecord("gone")
      out = io.BytesIO()
      Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(out, "PNG")
      return Record(str(i), out.getvalue(), tuple(map(Text, (texts[i % 9], texts[i % 5])[: 1 + i % 2])))

  image = ImageEncoder(size=8, patch=4, layers=1, width=8, mlp=8, heads=2)
  text = TextDecoder(vocab=64, length=16, unimodal_layers=1, multimodal_layers=1, width=8, mlp=8, heads=2)
  settings = {
    "shot": Eval(batch=8),
    "pairs": Eval(kind="retrieval", batch=8),
    "write": Eval(kind="captions", batch=8),
    "match": Eval(kind="matching", batch=8),
    "again": Eval(kind="retrieval", batch=8, rerank=4),
  }
  config = Config(
    model=Model(image=image, text=text, poolers=Poolers(n_query=2)), evals=settings, matching=Matching(weight=1.0)
  )
  forward = Forward(config, sharding.make_mesh())
  rng = np.random.default_rng(0)

  def random(x):
    values = rng.normal(0, 0.5, x.shape).astype(x.dtype)
    return jax.make_array_from_callback(x.shape, x.sharding, lambda index: values[index])

  params = jax.tree.map(random, forward.abstract_params)
  made = build.make_evaluators(config, forward, train(texts * 4, 64), dict.fromkeys(settings, Source()))
  found = dict(build.run_all(made, params))
  write_contact_sheet(made, params, f"{folder}/sheet{jax.process_index()}.png", 6)
  tokenizer = made["shot"].stream.tokenizer
  model = SimpleNamespace(config=config, forward=forward, tokenizer=tokenizer, labels=(), params=params)
  sets = {name: DataSet(settings[name], Source()) for name in ("shot", "pairs", "write")}
  for _ in range(2):  # the second time nothing is left to do
    suite.run(model, "model", sets, f"{folder}/results")
  with open(f"{folder}/{jax.process_index()}.json", "w") as f:
    json.dump(found, f)


@pytest.mark.slow
def test_two_processes_tell_what_one_does(tmp_path):
  (tmp_path / "one").mkdir()
  (tmp_path / "two").mkdir()
  evaluate(tmp_path / "one")
  port = free_port()
  workers = [
    subprocess.Popen(
      [forked.python(), __file__, str(port), str(i), tmp_path / "two"],
      env=environment(2, **UNCACHED),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      process_group=0,
    )
    for i in range(2)
  ]
  try:
    output = [w.communicate(timeout=300)[0] for w in workers]
  finally:
    for w in workers:
      forked.kill(w)
  assert all(w.returncode == 0 for w in workers), "\n".join(output)

  one = json.loads((tmp_path / "one" / "0.json").read_text())
  first, second = (json.loads((tmp_path / "two" / f"{i}.json").read_text()) for i in range(2))
  assert one["eval/shot/examples"] == one["eval/pairs/examples"] == one["eval/write/examples"] == 21
  assert one["eval/match/examples"] == 21 and 0 < one["eval/match/auc_hard"] < 1
  assert one["eval/again/t2i_r1"] == one["eval/pairs/t2i_r1"] != one["eval/again/t2i_r1_reranked"]
  assert first.keys() == one.keys()
  np.testing.assert_allclose(list(first.values()), list(one.values()), rtol=1e-5)
  assert second.items() <= first.items() and "eval/write/nll" in second and "eval/write/bleu1" not in second
  results = [json.loads((tmp_path / n / "results" / "results.json").read_text())["results"] for n in ("one", "two")]
  for name, first in results[0].items():
    assert results[1][name]["main"] == [first["main"][0], pytest.approx(first["main"][1], rel=1e-5)]
  assert all(line.count("measured before") == 3 for line in output[:1]) and "measured" not in output[1]
  assert (tmp_path / "two" / "sheet0.png").exists() and not (tmp_path / "two" / "sheet1.png").exists()


if __name__ == "__main__":
  jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
  evaluate(sys.argv[3])
