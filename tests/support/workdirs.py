"""Working directories of small real models."""

import json

import jax
import numpy as np

from coca import config as settings
from coca.config import Config, Eval, ImageEncoder, Model, Poolers, Source, TextDecoder
from coca.data.tokenizers.sentencepiece import train
from coca.devices import sharding
from coca.inference.forward import Forward
from coca.storage.checkpoint import Checkpoints

TEXTS = ("red apple", "green pear", "blue plum", "dark fig")


def small_config(data, **kwargs):
  image = ImageEncoder(size=16, patch=8, layers=1, width=16, mlp=32, heads=2)
  text = TextDecoder(vocab=64, length=12, unimodal_layers=1, multimodal_layers=1, width=16, mlp=32, heads=2)
  source = Source(kind="folder", path=str(data))
  evaluators = {"shot": Eval(source=source, batch=8), "write": Eval(kind="captions", source=source, batch=8)}
  values = {
    "model": Model(image=image, text=text, poolers=Poolers(n_query=4)),
    "evals": evaluators,
    "mesh": settings.Mesh(data=64),
  }  # a mesh that only the training machine had
  return Config(**values | kwargs)


def random_params(forward):
  rng = np.random.default_rng(5)  # its captions differ
  return jax.tree.map(
    lambda x: jax.device_put(rng.normal(0, 0.5, x.shape).astype(x.dtype), x.sharding), forward.abstract_params
  )


def make_workdir(workdir, config, steps=(3,), ema_shift=None):
  """What training leaves behind; returns the parameters. The moving average is the parameters plus `ema_shift`."""
  workdir.mkdir()
  tokenizer = train(TEXTS * 8, 64)
  tokenizer.save(workdir / "tokenizer.model")
  (workdir / "config.json").write_text(
    json.dumps({"config": settings.to_dict(config).to_dict(), "tokenizer_sha256": tokenizer.sha256})
  )
  params = random_params(Forward(config, sharding.make_mesh(devices=jax.devices()[:1])))
  state = {"params": params}
  if ema_shift is not None:
    state["ema"] = jax.tree.map(lambda x: jax.device_put(np.asarray(x) + np.float32(ema_shift), x.sharding), params)
  checkpoints = Checkpoints(workdir / "checkpoints")
  for step in steps:
    checkpoints.save(step, state, {})
  checkpoints.close()
  return params
