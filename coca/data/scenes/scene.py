"""A scene: what is where."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Thing:
  """An object in a scene. `x` and `y`, its centre from the left and from the top, and `size`, the side of its square,
  are in image widths; `turn` is in degrees, clockwise."""

  name: str
  style: str
  x: float
  y: float
  size: float
  turn: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
  """`things` are in the order of drawing: a later one hides an earlier one. `view` chooses one of the variations of the
  place."""

  place: str
  things: tuple[Thing, ...]
  view: int = 0
