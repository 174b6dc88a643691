"""A page of this machine on which a trained model can be tried: `python -m maskrcnn.web ckpt=...`."""
