"""GGUF files as sources: read with care, and converted once into an ordinary model directory."""
