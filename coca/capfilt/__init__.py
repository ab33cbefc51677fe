"""CapFilt (BLIP section 3.3): a captioner writes texts for images, a filter says which texts fit."""
