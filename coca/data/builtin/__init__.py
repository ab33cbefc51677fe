"""The corpus that ships with the package: drawings with their names, 64 px, openly licensed (see NOTICE).

`corpus/` is a prepared tfds data set (ArrayRecord); `builder.py` defines it, `rebuild.py` makes it again.
"""

import pathlib

CORPUS = pathlib.Path(__file__).parent / "corpus"
