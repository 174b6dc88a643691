"""Mask R-CNN for instance segmentation, trained with PyTorch Lightning and configured with Hydra."""
