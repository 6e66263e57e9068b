"""Shapes that are priced and not trained: the model refuses them as the planner does."""

import pytest

from thrifty.model.transformer import Transformer
from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import Experts, Job, LatentAttention, ModelShape
from thrifty.spec.legal import illegal
from thrifty.spec.recipe import Batch, Recipe


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "encoder"}, "kind encoder"),
        ({"kind": "vit", "patch_size": 4}, "kind vit"),
        ({"experts": Experts(count=4, active=2, ffn=8)}, "experts"),
        ({"latent": LatentAttention(kv_rank=8, nope_dim=4, rope_dim=2, value_dim=4)}, "latent attention"),
        ({"qk_norm": "width"}, "qk_norm width"),
        ({"attention_sinks": True}, "attention_sinks"),
    ],
)
def test_what_is_only_priced_is_refused_in_the_words_of_the_planner(change, what):
    shape = ModelShape(layers=1, hidden=16, heads=2, ffn=20, vocab_size=11, **change)
    batch = Batch(sequences=1, micro_sequences=1)
    reason = illegal(Job(model=shape, steps=1, sequence_length=8), Recipe(batch=batch))
    with pytest.raises(ThriftyError, match=f"the trainer runs dense decoders, not {what}") as refusal:
        Transformer(shape)
    assert reason is not None
    assert (refusal.value.what, refusal.value.where, refusal.value.hint) == (reason.what, reason.key, reason.hint)
