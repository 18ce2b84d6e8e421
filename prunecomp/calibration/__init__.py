"""From text to statistics of the residual stream: tokens, the model as planned, the runner."""
