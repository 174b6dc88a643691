"""An exported model: what its file says about itself, and its use in the place of a network."""
