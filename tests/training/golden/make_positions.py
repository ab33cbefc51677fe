"""Makes positions.npz of test_start.py: run it on a Python with torch.

    python tests/training/golden/make_positions.py

Grids of position embeddings after a class token, and what torch's bicubic `interpolate` makes of them in fp64, as BLIP
calls it: to a size, align_corners=False, not antialiased. Their values are exact in fp32.
"""

from pathlib import Path

import numpy as np
import torch

rng, arrays = np.random.default_rng(0), {}
for old, new in ((4, 6), (6, 4), (2, 7), (5, 5), (12, 5)):
  positions = rng.normal(size=(1 + old * old, 3)).astype(np.float32).astype(np.float64)
  grid = torch.tensor(positions[1:]).reshape(1, old, old, 3).permute(0, 3, 1, 2)
  grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
  resized = grid.permute(0, 2, 3, 1).reshape(new * new, 3).numpy()
  arrays |= {f"{old}_to_{new}/old": positions, f"{old}_to_{new}/new": np.concatenate([positions[:1], resized])}
np.savez_compressed(Path(__file__).parent / "positions.npz", **arrays)
