"""Images of prompts with embeddings: what compiles, and what an image does not depend on."""

import jax
import numpy as np
import pytest
from support.embeddings import vectors, write
from support.pipelines import checkpoint, generate, pipeline, prompts

from tpusd.config.embeddings import EmbeddingConfig
from tpusd.runs.embeddings import open_embeddings, with_embeddings

pytestmark = pytest.mark.slow
FAST = ("sampler=ddim", "sampler.num_inference_steps=2", "guidance_scale=3")


def given(tmp_path, seed, number=2, token="ugly"):
    """A run's words for an embedding, and the tokenizers that know it."""
    file = write(tmp_path / f"{seed}.safetensors", {"emb_params": vectors(number, 32, seed)})
    made = open_embeddings([EmbeddingConfig(path=str(file), token=token)], "tiny", checkpoint())
    return f"embeddings=[{{path: {file}, token: {token}}}]", with_embeddings(checkpoint(), made).tokenizers


def test_other_embeddings_compile_nothing_and_change_the_image(tmp_path):
    pipe = pipeline(per_device=2)
    generate(pipe, prompts("a fox"), *FAST)
    before = set(pipe.fingerprints)
    word, tokenizers = given(tmp_path, 0)
    first = generate(pipe, prompts("a ugly fox"), *FAST, word, tokenizers=tokenizers)[0, 0]
    assert set(pipe.fingerprints) - before == {"encode_plain_1_1_embedded"}
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        word, tokenizers = given(tmp_path, 1, number=5, token="toy")
        others = generate(pipe, prompts("a toy fox", "a fox"), *FAST, word, tokenizers=tokenizers)
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []
    assert np.abs(first.pixels.astype(int) - others[0, 0].pixels).max() > 1
    assert first.trace["tokens"] != others[0, 0].trace["tokens"]


def test_an_image_without_the_word_is_that_of_a_run_without_embeddings(tmp_path):
    pipe = pipeline(per_device=2)
    word, tokenizers = given(tmp_path, 0)
    with_it = generate(pipe, prompts("a fox", "a ugly fox"), *FAST, word, tokenizers=tokenizers)
    alone = generate(pipe, prompts("a fox"), *FAST)
    difference = np.abs(with_it[0, 0].pixels.astype(int) - alone[0, 0].pixels)
    assert difference.max() <= 1  # another program may round
