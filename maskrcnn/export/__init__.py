"""A trained model as one file for other programs: `python -m maskrcnn.export ckpt=... format=onnx`."""
