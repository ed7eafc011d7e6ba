"""The presets against numbers that their makers publish."""

import dataclasses

import pytest

from fairlead.errors import FairleadError
from fairlead.simulator.hardware import DEVICES, MODELS, device, model

PUBLISHED_PARAMS = {
    "llama-3-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "qwen2.5-7b": 7.61e9,
    "qwen2.5-32b": 32.5e9,
}
PUBLISHED_PARAMS_WITHOUT_EMBEDDINGS = {"qwen2.5-7b": 6.53e9, "qwen2.5-32b": 31.0e9}
# Grouped-query attention: 2 (K, V) x layers x KV heads x 128 x 2 bytes, from the models' papers.
PUBLISHED_KV_KIB_PER_TOKEN = {"llama-3-8b": 128, "llama-3-70b": 320, "qwen2.5-7b": 56, "qwen2.5-32b": 256}
DATA_SHEET_MEMORY = {"a10": 24e9, "l40s": 48e9, "a100-80g": 80e9, "h100": 80e9, "h200": 141e9}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_weights_match_the_published_parameter_count(name):
    assert set(PUBLISHED_PARAMS) == set(MODELS)
    assert MODELS[name].weight_bytes == pytest.approx(2 * PUBLISHED_PARAMS[name], rel=0.03)


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMS_WITHOUT_EMBEDDINGS))
def test_linear_parameters_match_the_published_count_without_embeddings(name):
    assert MODELS[name].linear_params == pytest.approx(PUBLISHED_PARAMS_WITHOUT_EMBEDDINGS[name], rel=0.03)


def test_llama_3_8b_has_exactly_its_published_parameters():
    assert MODELS["llama-3-8b"].total_params == 8_030_261_248


@pytest.mark.parametrize("name", sorted(MODELS))
def test_kv_bytes_per_token(name):
    assert MODELS[name].kv_bytes_per_token == PUBLISHED_KV_KIB_PER_TOKEN[name] * 1024


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_are_consistent(name):
    facts = MODELS[name]
    assert facts.name == name and facts.source
    assert facts.heads * facts.head_dim == facts.hidden
    assert facts.heads % facts.kv_heads == 0


def test_tied_embeddings_are_stored_once():
    untied = MODELS["llama-3-8b"]
    tied = dataclasses.replace(untied, tied_embeddings=True)
    assert untied.total_params - tied.total_params == untied.vocab * untied.hidden


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_devices_match_their_data_sheets(name):
    facts = DEVICES[name]
    assert facts.name == name and "data sheet" in facts.source
    # Data sheets print round decimal gigabytes; drivers report up to 8 % more on HBM parts.
    assert DATA_SHEET_MEMORY[name] <= facts.memory_bytes <= 1.08 * DATA_SHEET_MEMORY[name]
    # Arithmetic intensity at which the roofline bends, FLOP per byte: between 100 and 500 today.
    assert 100 < facts.flops / facts.bandwidth < 500


def test_look_up_by_name():
    assert device("h200") is DEVICES["h200"]
    assert model("llama-3-70b") is MODELS["llama-3-70b"]


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        FairleadError, match="unknown device 'tpu': use one of a10, l40s, a100-80g, h100, h200"
    ):
        device("tpu")
    with pytest.raises(FairleadError, match="unknown model 'gpt': use one of llama-3-8b"):
        model("gpt")
