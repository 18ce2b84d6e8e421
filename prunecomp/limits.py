"""What files may claim: bounds that no sound file comes near, checked before anything is built."""

from __future__ import annotations

#: Decoder layers; a damaged number must not make us list that many.
MAX_LAYERS = 10_000
#: Bytes of a JSON file, and of a safetensors header (there it is the format's own limit).
MAX_JSON_BYTES = 100_000_000
#: Levels of lists and objects in a JSON file.
MAX_JSON_DEPTH = 100
#: Whole numbers in JSON have fewer bits; any float can hold them.
MAX_INTEGER = 2**63
#: What the factors of a plan may come to, and one by the largest: weights in half precision hold
#: no more, and no cut of a real model comes near it.
MAX_SCALE = 2.0**64
#: Doublings and halvings of all factors: within these, float64 holds their products in any order.
MAX_OCTAVES = 1000
#: Characters of a name or pattern in the settings of a quantised checkpoint.
MAX_PATTERN = 1 << 16
#: Seconds of a processor that one such pattern may take to be matched against all modules.
PATTERN_SECONDS = 2
#: Characters of a line that tells of an error.
MAX_LINE = 300
