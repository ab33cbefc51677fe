"""Files as salesforce/ALBEF and salesforce/BLIP write them, and their formulas (models/vit.py, models/xbert.py and
models/med.py) in float64 NumPy over the files' own names."""

import math
from pathlib import Path

import numpy as np
import safetensors.numpy

from coca.config.model import MEAN, STD
from support.blip_reference import log_softmax

VOCAB = Path(__file__).parents[1] / "data" / "tokenizers" / "golden" / "wordpiece" / "vocab.txt"
WIDTH, IMAGE, MLP, SIDE, PATCH = 32, 24, 40, 16, 8
HEADS = {"image_heads": 2, "text_heads": 4}


class Tensors(dict):
  """Tensors by name, drawn by `rng`."""

  def __init__(self):
    super().__init__()
    self.rng = np.random.default_rng(0)

  def linear(self, name, inputs, outputs):
    self[f"{name}.weight"] = self.rng.normal(0, inputs**-0.5, (outputs, inputs))
    self[f"{name}.bias"] = self.rng.normal(0, 0.3, outputs)

  def norm(self, name, width):
    self[f"{name}.weight"], self[f"{name}.bias"] = self.rng.normal(1, 0.2, width), self.rng.normal(0, 0.3, width)

  def vit(self, name="visual_encoder"):
    """timm's, of two layers."""
    self[f"{name}.cls_token"] = self.rng.normal(size=(1, 1, IMAGE))
    self[f"{name}.pos_embed"] = self.rng.normal(size=(1, (SIDE // PATCH) ** 2 + 1, IMAGE))
    self[f"{name}.patch_embed.proj.weight"] = self.rng.normal(0, 0.1, (IMAGE, 3, PATCH, PATCH))
    self[f"{name}.patch_embed.proj.bias"] = self.rng.normal(size=IMAGE)
    for i in range(2):
      for part, sizes in {
        "attn.qkv": (IMAGE, 3 * IMAGE),
        "attn.proj": (IMAGE, IMAGE),
        "mlp.fc1": (IMAGE, MLP),
        "mlp.fc2": (MLP, IMAGE),
      }.items():
        self.linear(f"{name}.blocks.{i}.{part}", *sizes)
      for part in ("norm1", "norm2"):
        self.norm(f"{name}.blocks.{i}.{part}", IMAGE)
    self.norm(f"{name}.norm", IMAGE)

  def save(self, path):
    safetensors.numpy.save_file({key: np.asarray(x, np.float32, order="C") for key, x in self.items()}, path)
    return path


class Authors:
  """Parts of the forward pass, of one image and one text [T]; `p` are the tensors of a file."""

  def __init__(self, tensors):
    self.p = {key: x.astype(np.float64) for key, x in tensors.items()}

  def linear(self, name, x):
    return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

  def norm(self, name, x, eps=1e-12):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

  def gelu(self, x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

  def attend(self, q, k, v, heads, seen=None):
    q, k, v = (x.reshape(len(x), heads, -1).swapaxes(0, 1) for x in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    scores = scores if seen is None else scores - 10_000 * ~seen
    return (np.exp(log_softmax(scores)) @ v).swapaxes(0, 1).reshape(q.shape[1], -1)

  def image(self, pixels):
    x = ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)
    n, p = SIDE // PATCH, "visual_encoder"
    x = x.reshape(3, n, PATCH, n, PATCH).transpose(1, 3, 0, 2, 4).reshape(n * n, -1)
    x = x @ self.p[f"{p}.patch_embed.proj.weight"].reshape(IMAGE, -1).T + self.p[f"{p}.patch_embed.proj.bias"]
    x = np.vstack([self.p[f"{p}.cls_token"][0], x]) + self.p[f"{p}.pos_embed"][0]
    for i in range(2):
      block = f"{p}.blocks.{i}"
      qkv = np.split(self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)), 3, axis=1)
      x = x + self.linear(f"{block}.attn.proj", self.attend(*qkv, HEADS["image_heads"]))
      hidden = self.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
      x = x + self.linear(f"{block}.mlp.fc2", hidden)
    return self.norm(f"{p}.norm", x, 1e-6)
