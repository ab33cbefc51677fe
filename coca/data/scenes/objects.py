"""The words of the world: the objects that a scene can hold, and the places that it can show."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
  """A thing with its drawings. `name` is the CLDR short name of `emoji` where that is a plain word, so that the emoji
  corpus teaches the same words; `emoji`, a code point in hexadecimal, is the `concept` of the built-in corpus."""

  name: str
  plural: str
  emoji: str


def _object(name: str, emoji: str, plural: str | None = None) -> Object:
  return Object(name, plural or f"{name}s", emoji)


# Drawn in all styles, told apart at 16 pixels, with an outline of their own (no scene in a frame), and no two that one
# could take for each other: no dolphin beside the whale, no peach beside the apple.
OBJECTS = (
  # Animals
  _object("dog", "1F415"),
  _object("cat", "1F408"),
  _object("horse", "1F40E"),
  _object("cow", "1F404"),
  _object("pig", "1F416"),
  _object("camel", "1F42A"),
  _object("elephant", "1F418"),
  _object("mouse", "1F401", plural="mice"),
  _object("rabbit", "1F407"),
  _object("bear", "1F43B"),
  _object("panda", "1F43C"),
  _object("monkey", "1F412"),
  _object("tiger", "1F405"),
  _object("rooster", "1F413"),
  _object("penguin", "1F427"),
  _object("frog", "1F438"),
  _object("crocodile", "1F40A"),
  _object("turtle", "1F422"),
  _object("snake", "1F40D"),
  _object("whale", "1F40B"),
  _object("octopus", "1F419", plural="octopuses"),
  _object("snail", "1F40C"),
  _object("honeybee", "1F41D"),
  _object("lady beetle", "1F41E", plural="lady beetles"),
  _object("spider", "1F577"),
  _object("wolf", "1F43A", plural="wolves"),
  # Plants
  _object("rose", "1F339"),
  _object("sunflower", "1F33B"),
  _object("evergreen tree", "1F332"),
  _object("palm tree", "1F334"),
  _object("cactus", "1F335", plural="cacti"),
  _object("mushroom", "1F344"),
  # Food and drink
  _object("watermelon", "1F349"),
  _object("tangerine", "1F34A"),
  _object("lemon", "1F34B"),
  _object("banana", "1F34C"),
  _object("pineapple", "1F34D"),
  _object("apple", "1F34E"),
  _object("pear", "1F350"),
  _object("strawberry", "1F353", plural="strawberries"),
  _object("eggplant", "1F346"),
  _object("hamburger", "1F354"),
  _object("pizza", "1F355"),
  _object("doughnut", "1F369"),
  _object("cookie", "1F36A"),
  _object("ice cream", "1F368"),
  _object("birthday cake", "1F382"),
  _object("lollipop", "1F36D"),
  _object("candy", "1F36C", plural="candies"),
  _object("wine glass", "1F377", plural="wine glasses"),
  _object("beer mug", "1F37A"),
  _object("honey pot", "1F36F"),
  # Vehicles
  _object("airplane", "2708"),
  _object("helicopter", "1F681"),
  _object("rocket", "1F680"),
  _object("bicycle", "1F6B2"),
  _object("motorcycle", "1F3CD"),
  _object("automobile", "1F697"),
  _object("bus", "1F68C", plural="buses"),
  _object("taxi", "1F695"),
  _object("ambulance", "1F691"),
  _object("fire engine", "1F692"),
  _object("police car", "1F693"),
  _object("tractor", "1F69C"),
  _object("locomotive", "1F682"),
  # Things
  _object("alarm clock", "23F0"),
  _object("balloon", "1F388"),
  _object("trophy", "1F3C6", plural="trophies"),
  _object("soccer ball", "26BD"),
  _object("crystal ball", "1F52E"),
  _object("dress", "1F457", plural="dresses"),
  _object("backpack", "1F392"),
  _object("crown", "1F451"),
  _object("graduation cap", "1F393"),
  _object("ring", "1F48D"),
  _object("gem stone", "1F48E"),
  _object("bell", "1F514"),
  _object("guitar", "1F3B8"),
  _object("trumpet", "1F3BA"),
  _object("telephone", "260E"),
  _object("television", "1F4FA"),
  _object("camera", "1F4F7"),
  _object("candle", "1F56F"),
  _object("light bulb", "1F4A1"),
  _object("pencil", "270F"),
  _object("key", "1F511"),
  _object("hammer", "1F528"),
  _object("bomb", "1F4A3"),
  _object("microscope", "1F52C"),
  _object("bathtub", "1F6C1"),
  _object("toilet", "1F6BD"),
  _object("door", "1F6AA"),
  _object("anchor", "2693"),
  _object("house", "1F3E0"),
  _object("castle", "1F3F0"),
  _object("money bag", "1F4B0"),
  _object("wrapped gift", "1F381"),
  _object("ghost", "1F47B"),
  _object("skull", "1F480"),
  _object("telescope", "1F52D"),
)

PLACES = {
  "beach": "on the beach",
  "snow": "in the snow",
  "grass": "on the grass",
  "desert": "in the desert",
  "night": "at night",
  "water": "on the water",
  "street": "on the street",
  "room": "in a room",
}
"""The places, and how a sentence says them."""


def article(name: str) -> str:
  """'a' or 'an', by the first letter: no name of `OBJECTS` sounds otherwise than it is written."""
  return "an" if name[0] in "aeiou" else "a"
