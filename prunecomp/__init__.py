"""prunecomp: removes whole decoder layers from a language model and repairs the damage offline.

The map of the code, in reading order:

1. `prunecomp.plan`         what was decided: a frozen, JSON-serialisable `PrunePlan`
2. `prunecomp.families`     per architecture: what writes to the stream, what the config says
3. `prunecomp.checkpoint`   reading, rewriting and writing a model directory, tensor by tensor
4. `prunecomp.fold`         plan + family -> one `TensorEdit` per written tensor
5. `prunecomp.calibration`  text -> tokens -> statistics of the residual stream at every boundary
6. `prunecomp.metrics`      statistics -> which layers go; one file each
7. `prunecomp.compensators` statistics -> the factor that closes the gap; one file each
8. `prunecomp.selection`    the one loop over rounds
9. `prunecomp.pipeline`     `make_plan`, `apply_plan`, `compress`: the three calls that a user makes

Vocabulary: a *layer* is a decoder block. *Boundary* i is the hidden state that enters layer i;
boundary L leaves the last layer, before the final norm. A *span* is a run of neighbouring live
layers. Layers are always named by their index in the source checkpoint.
"""
