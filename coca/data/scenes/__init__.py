"""A world whose truth is known: scenes composed of drawings, with sentences about them."""
