"""A model from where it was left: a working directory, a converted model, or one on the hub."""

import jax

from coca.devices import sharding
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.forward import Forward
from coca.storage.hub import local_folder
from coca.storage.workdir import read_labels, read_params, read_workdir


def load(workdir, ema: bool | None = None, devices=None) -> ContrastiveCaptioner:
  """Opens the newest usable checkpoint of a working directory.

  Args:
    workdir: what `python -m coca.train --workdir=...` wrote; a local path or a URL such as gs://, or hf://org/name
      (`coca.storage.hub`).
    ema: True takes the moving average of the parameters, False the parameters themselves; None the average if the run
      kept one.
    devices: where it runs; None: all of this process.

  Raises:
    FileNotFoundError: not a working directory, or no checkpoint in it yet.
    ValueError: its parts do not belong together: another tokenizer, or parameters of other settings.
    coca.storage.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  workdir = local_folder(workdir)
  config, tokenizer = read_workdir(workdir)
  if ema and not config.optim.ema:
    raise ValueError(f"{workdir} kept no moving average (config.optim.ema is 0); leave ema out")
  # Split over data only, whatever the run had: each device holds all parameters and takes its share of the batch.
  forward = Forward(config, sharding.make_mesh(devices=devices or jax.local_devices()))
  part = {None: None, True: "ema", False: "params"}[ema]
  params = read_params(workdir, forward.abstract_params, part)
  return ContrastiveCaptioner(config, tokenizer, forward, params, read_labels(workdir))
