"""Text from trained models: all loops of a token go through the layers as one batch."""
