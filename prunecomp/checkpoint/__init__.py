"""Model directories: reading headers and tensors, rewriting them, writing them whole or not at all."""
