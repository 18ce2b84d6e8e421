"""`cl` with the cosine along the sequence, as published code computes it."""

from prunecomp.metrics.cl import ContiguousBlock


class ContiguousBlockSequence(ContiguousBlock):
    """``1 - mean_c cos(h_l[:, c], h_{l+N}[:, c])``, one cosine per channel over the tokens.

    The research code of Prune&Comp and LinearPatch calls torch's cosine with its default dim on
    tensors of [sample, token, channel], and so compares along tokens. For reproducing their
    published layer indices; `cl` is what the papers define.
    """

    summary = "cl with the cosine over tokens, to reproduce published indices"
    axis = "sequence"


METRIC = ContiguousBlockSequence()
