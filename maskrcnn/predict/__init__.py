"""What a trained model finds in pictures, videos and cameras: `python -m maskrcnn.predict ckpt=... source=...`."""
