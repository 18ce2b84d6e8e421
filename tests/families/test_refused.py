"""Refused types: transformers knows them, and says of them what their group's reason says."""

from __future__ import annotations

import json

import pytest

from prunecomp.checkpoint.reader import Checkpoint
from prunecomp.errors import UnsupportedModelError
from prunecomp.families import REFUSED, family_for, supported_types
from prunecomp.families._refused import (
    ENCODER_DECODERS,
    ENCODERS,
    WRAPPERS,
    WRAPPERS_OF_UNSUPPORTED,
)

PARTS = {"text_config", "thinker_config", "decoder", "language_config", "llm_config"}


def default_config(model_type: str):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


def test_none_is_supported_as_well():
    assert not REFUSED.keys() & supported_types().keys()


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_transformers_knows_it(model_type):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert model_type in CONFIG_MAPPING_NAMES


@pytest.mark.parametrize("model_type", sorted(set(ENCODER_DECODERS) - {"encoder-decoder"}))
def test_encoder_decoders(model_type):
    """``encoder-decoder`` itself has no default config: it is made of two others."""
    assert default_config(model_type)().is_encoder_decoder


@pytest.mark.parametrize("model_type", ENCODERS)
def test_encoders(model_type):
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    assert model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    assert not default_config(model_type)().is_encoder_decoder


@pytest.mark.parametrize("model_type", [*WRAPPERS, *WRAPPERS_OF_UNSUPPORTED])
def test_wrappers(model_type):
    """Those are sent to their language model whose language model is of a supported type."""
    assert default_config(model_type).sub_configs.keys() & PARTS
    part = default_config(model_type)().get_text_config().model_type
    assert (part in supported_types()) == (model_type in WRAPPERS)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "jamba"}, "follows from their number"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "gemma3", "text_config": {}}, "text-only checkpoint"),
        ({"model_type": "new_vl", "text_config": {}}, "text-only checkpoint"),
        ({"model_type": "new_vl", "text_config": {"model_type": "qwen3"}}, "text-only checkpoint"),
        ({"model_type": "new_vl", "text_config": {"model_type": "x"}}, "not supported by itself"),
        ({"model_type": "llava", "text_config": {"model_type": "x"}}, "not supported by itself"),
        ({"model_type": "qwen3_5"}, "not supported by itself"),
        ({"model_type": "llama4"}, "not supported by itself"),
        ({"model_type": "new_t2t", "is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_says_why(tmp_path, config, says):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=says) as raised:
        Checkpoint(tmp_path)
    assert f"model type {config['model_type']!r} is not supported: " in str(raised.value)


def test_what_nobody_has_looked_at_gets_the_list():
    with pytest.raises(UnsupportedModelError, match=r"'lama' is not supported; did you mean"):
        family_for({"model_type": "lama"}, where="here")
