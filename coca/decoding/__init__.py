"""Text from images, over a model's `start_decoding` and `decode_step`."""
