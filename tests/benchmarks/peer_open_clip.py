"""open_clip's side of train_step.py: its coca_ViT-B-32, its CoCaLoss, and the step of its training loop.

Runs on a Python that has torch and open_clip_torch; started by train_step.py.
"""

import argparse
import importlib.util
import math

from turns import limit_threads, serve


def import_open_clip():
  """open_clip and torch. PyPI's torchvision is built for CUDA; beside a CPU torch its operators are missing.

  open_clip needs none of them. Their names are enough for the import, which registers two of them.
  """
  import torch

  if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
    for name in ("nms", "qnms"):
      torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import open_clip

  return open_clip, torch


def make_step(open_clip, torch, model, batch: int, size: int, length: int, vocab: int):
  """One step as open_clip_train's `train_one_epoch` does it, with its defaults for the optimizer: () -> loss."""
  loss_fn = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
  named = list(model.named_parameters())
  no_decay = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
  ids = {id(p) for p in no_decay}
  groups = [
    {"params": no_decay, "weight_decay": 0.0},
    {"params": [p for _, p in named if id(p) not in ids], "weight_decay": 0.2},
  ]
  optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6)
  generator = torch.Generator().manual_seed(0)
  image = torch.randn(batch, 3, size, size, generator=generator)
  text = torch.randint(4, vocab, (batch, length), generator=generator)

  def step():
    optimizer.zero_grad()
    losses = loss_fn(**model(image, text), output_dict=True)
    total = sum(losses.values())
    total.backward()
    optimizer.step()
    with torch.no_grad():
      model.logit_scale.clamp_(0, math.log(100))
    return total.item()

  return step


def count_flops(open_clip, torch, model, size: int, length: int, vocab: int) -> int:
  """Forward and backward of one pair; attention as plain matrix products, which the counter knows on every device."""
  from torch.nn.attention import SDPBackend, sdpa_kernel
  from torch.utils.flop_counter import FlopCounterMode

  loss_fn = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
  image, text = torch.randn(1, 3, size, size), torch.randint(4, vocab, (1, length))
  with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
    sum(loss_fn(**model(image, text), output_dict=True).values()).backward()
  return counter.get_total_flops()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", default="coca_ViT-B-32")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--count", action="store_true", help="count FLOPs and end: it costs memory of its own")
  args = parser.parse_args()
  limit_threads(args.threads)
  open_clip, torch = import_open_clip()
  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  settings = open_clip.get_model_config(args.model)
  image, text = settings["vision_cfg"], settings["text_cfg"]
  shape = image["image_size"], text["context_length"], text["vocab_size"]
  model = open_clip.create_model(args.model).train()
  facts = {"parameters": sum(p.numel() for p in model.parameters())}
  if args.count:
    serve(lambda: 0.0, **facts, flops=count_flops(open_clip, torch, model, *shape))
  else:
    serve(make_step(open_clip, torch, model, args.batch, *shape), **facts)


if __name__ == "__main__":
  main()
