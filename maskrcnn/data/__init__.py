"""Datasets, samples and batches: from an image file to a training target."""
