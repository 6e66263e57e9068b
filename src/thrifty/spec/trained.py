"""Which shapes the trainer's model can be. Planner and model ask here, so both refuse in the same words."""

from __future__ import annotations

from thrifty.spec.errors import ThriftyError
from thrifty.spec.job import ModelShape

WAY_OUT = "plan it for another software, e.g. --set recipe.software=megatron, and run what --emit writes"


def untrained(shape: ModelShape) -> str:
    """Why the trainer does not run a shape that can be priced; empty where it does."""
    others = {
        f"kind {shape.kind}": shape.kind != "decoder",
        "experts": shape.experts is not None,
        "latent attention": shape.latent is not None,
        "qk_norm width": shape.qk_norm == "width",
        "attention_sinks": shape.attention_sinks,
    }
    return next((f"the trainer runs dense decoders, not {what}" for what, present in others.items() if present), "")


def require_trained(shape: ModelShape) -> None:
    """Refuses a shape that the trainer's model cannot be.

    Raises:
        ThriftyError: with the reason that `untrained` gives.
    """
    reason = untrained(shape)
    if reason:
        raise ThriftyError(reason, where="job.model", hint=WAY_OUT)
