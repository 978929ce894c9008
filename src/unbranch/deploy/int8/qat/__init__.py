"""Quantisation-aware training: the collapsed network, fake quantised, trained on the user's labelled images."""
