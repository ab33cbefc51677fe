"""Makes the golden files of test_clip_transformers.py: run it on a Python with torch and transformers.

    PYTHONPATH=tests/benchmarks python tests/interop/golden/make_clip_transformers.py

Per class a folder that it loads (random weights, all widths different where they may be) and `outputs.npz`: what it
computes in fp32 from the images and texts in it.
"""

import importlib
from pathlib import Path

import numpy as np
from peer_open_clip import import_open_clip

_, torch = import_open_clip()  # transformers' import needs what open_clip's does
transformers = importlib.import_module("transformers")

HERE = Path(__file__).parent
VISION = {"image_size": 24, "patch_size": 8, "hidden_size": 48, "intermediate_size": 72}
VISION |= {"num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 560, "max_position_embeddings": 9, "hidden_size": 24, "intermediate_size": 40}
TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
  "clip": ("CLIP", {"text_config": TEXT | {"eos_token_id": 559}, "vision_config": VISION, "projection_dim": 40}),
  "siglip": ("Siglip", {"text_config": TEXT | {"projection_size": 48}, "vision_config": VISION}),
}


def make(name: str) -> None:
  kind, settings = MODELS[name]
  torch.manual_seed(sum(map(ord, name)))
  config = getattr(transformers, f"{kind}Config")(**settings)
  model = getattr(transformers, f"{kind}Model")(config).eval()
  with torch.no_grad():
    for key, x in model.named_parameters():
      is_norm = "norm" in key.split(".")[-2:][0] and key.endswith("weight")
      x.copy_(torch.randn(x.shape) * (x.shape[-1] ** -0.5 if x.ndim > 1 else 0.3) + is_norm)
  folder = HERE / "clip_transformers" / name
  model.save_pretrained(folder)
  rng = np.random.default_rng(0)
  image, text = rng.integers(0, 256, (4, 24, 24, 3), np.uint8), rng.integers(1, 558, (4, 9))
  text[:, 0] = 558
  for row, end in enumerate((3, 5, 7, 8)):
    text[row, end], text[row, end + 1 :] = 559, 0
  pixels = (torch.tensor(image) / 255 - 0.5) / 0.5
  with torch.no_grad():
    out = model(pixel_values=pixels.permute(0, 3, 1, 2), input_ids=torch.tensor(text))
  outputs = {"image_latent": out.image_embeds.numpy(), "text_latent": out.text_embeds.numpy()}
  np.savez_compressed(folder / "outputs.npz", image=image, text=text.astype(np.int32), **outputs)


if __name__ == "__main__":
  for name in MODELS:
    make(name)
