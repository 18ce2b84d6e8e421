"""Model directories: reading headers and tensors, writing them whole or not at all."""
