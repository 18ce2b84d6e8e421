"""Local tasks for lm-eval, and the scripts that make them."""
