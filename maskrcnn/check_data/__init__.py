"""Everything about a data set before it is trained on: `python -m maskrcnn.check_data data.root=...`."""
