"""Texts from images: greedy, sampling and beam search, written once over a small protocol.

Shapes: B images, K rows of an image (beams or samples; 1 for greedy), S image tokens, P tokens of a prefix, T text
length, H heads, D widths, V vocabulary.

A model that writes texts has two methods,

    weights = model.decoding_weights()
    step, cache = model.start_decoding(weights, image_tokens, length, rows, prefix)

  weights: any tree of arrays. Whatever the model can do once and for all pictures (cutting stacked layers apart, casts,
    gathers, turning kernels) belongs into `decoding_weights`; a program of its own runs it.
  image_tokens: [B, S, D], what the decoder attends to. Its keys and values are computed here, once an image; the K rows
    are K queries of the same attention, so nothing is held or read K times.
  length: T, of the texts at most. rows: K.
  prefix: int32 [B, P], tokens at the positions 0 to P - 1, the same for all rows of an image; P may be 0. They are read
    at once and kept as row 0's.
  context_mask: bool [B, 1, 1, S], one argument more where only some image tokens count (`Encoded.mask`).
  cache: any tree of arrays with static shapes. Its slots are pairs of position and row.

and the function it returns, which reads one token of each row and predicts the next,

    logits, cache = step(cache, ids, position, ancestors)

  ids: int32 [B, K], the tokens at `position`, an int32 [] from 0 to T - 1. They are kept in the slots (position, row).
  ancestors: int32 [B, K, T]: row k sees at position t, up to `position` and that included, what row ancestors[b, k, t]
    kept there, and nothing else. So a beam that takes over another one's text copies a row of this table and no cache.
  logits: fp32 [B, K, V] of the tokens at `position` + 1.

A step may be asked for a position again (the last token of a prefix, for one): it writes the slots anew. It is the body
of a loop, so what is done once a batch belongs into `start_decoding`. The strategies below take the method with its
weights filled in, as `start`.
"""
