"""The Job: what is wanted. Model shape, data, how long, and the seed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from thrifty.spec.figure import Count, Noun, Number, PositiveCount, Ratio, Tokens


class RopeScaling(Noun):
    """Llama 3.1's frequency rescaling for long contexts (Hugging Face `rope_type: llama3`)."""

    factor: Number
    low_freq_factor: Number
    high_freq_factor: Number
    original_max_positions: PositiveCount


class Experts(Noun):
    """Mixture of experts in the place of the MLP (Shazeer et al. 2017, arXiv:1701.06538).

    Attributes:
        count: routed experts of a layer.
        active: routed experts that each token passes through.
        ffn: inner width of one expert.
        shared: further experts of the same width that every token passes through (DeepSeekMoE, arXiv:2401.06066).
        dense_layers: how many of the first layers keep the plain MLP of width `ffn` of the model.
        imbalance: tokens on the fullest rank over the mean; 1 = perfectly balanced routing.
    """

    count: PositiveCount
    active: PositiveCount
    ffn: PositiveCount
    shared: Annotated[Count, Field(ge=0)] = 0
    dense_layers: Annotated[Count, Field(ge=0)] = 0
    imbalance: Annotated[Number, Field(ge=1)] = 1.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.active > self.count:
            raise ValueError(f"active {self.active} experts of {self.count}; use at most {self.count}")
        return self


class LatentAttention(Noun):
    """Multi-head latent attention: keys and values from one low-rank vector (DeepSeek-V2, arXiv:2405.04434).

    Attributes:
        q_rank: rank of the query's compression; none = queries come straight from the stream.
        kv_rank: width of the vector that keys and values are made from, and that a cache keeps.
        nope_dim: width of a head's key without position.
        rope_dim: width of the rotary key that all heads share.
        value_dim: width of a head's value.
    """

    q_rank: PositiveCount | None = None
    kv_rank: PositiveCount
    nope_dim: PositiveCount
    rope_dim: PositiveCount
    value_dim: PositiveCount


class ModelShape(Noun):
    """A transformer, described by switches that span the GPT-2, Llama, Qwen and Mistral families and their kin.

    The trainer runs dense decoders. Mixtures of experts, latent attention, encoders and vision transformers are priced.

    Attributes:
        kind: `decoder` attends to what came before; `encoder` (BERT) to everything; `vit` to the patches of an image.
        vocab_size: rows of the embedding. A job file may say `auto`, which becomes the tokenizer's size.
        kv_heads: key/value heads (grouped-query attention); equals `heads` when left out.
        head_dim: width of a head; `hidden / heads` when left out.
        ffn: inner width of the MLP.
        max_positions: longest sequence; rows of the table when positions are learned.
        mlp: `swiglu` has three matrices (gate, up, down); `gelu` (tanh form, as GPT-2) has two.
        bias: `none`; `qkv` on the three attention inputs only (Qwen2); `all` on every linear layer (GPT-2).
        experts: a mixture of experts in place of the MLP; none = dense.
        latent: multi-head latent attention; none = grouped queries as `kv_heads` says.
        patch_size: pixels of one side of a patch (`vit`); `vocab_size` is then the number of classes, and a sequence is
            one image: (image side / patch side)^2 tokens and one for the class.
        channels: of the image (`vit`).
        token_types: rows of the table that tells sentences apart (`encoder`): 2 in BERT, 1 in RoBERTa.
        qk_norm: normalises queries and keys: `true` each head alone (Qwen3), `width` all heads together (OLMo 2).
        attention_sinks: one learned score a head that takes attention and gives nothing (gpt-oss).
        sliding_window: each token attends to this many latest tokens (Mistral 7B v0.1); none = all.
        full_attention_every: with a window, every n-th layer attends to all nevertheless (2: GPT-3, gpt-oss); none = no
            layer does.
        source: where the shape was read.
    """

    name: str = "custom"
    kind: Literal["decoder", "encoder", "vit"] = "decoder"
    layers: PositiveCount
    hidden: PositiveCount
    heads: PositiveCount
    kv_heads: PositiveCount
    head_dim: PositiveCount
    ffn: PositiveCount
    vocab_size: PositiveCount
    max_positions: PositiveCount = 2048
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: Annotated[Number, Field(gt=0)] = 1e-5
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: Annotated[Number, Field(gt=0)] = 10000.0
    rope_scaling: RopeScaling | None = None
    qk_norm: bool | Literal["width"] = False
    tied_embeddings: bool = False
    bias: Literal["none", "qkv", "all"] = "none"
    attention_sinks: bool = False
    sliding_window: PositiveCount | None = None
    full_attention_every: PositiveCount | None = None
    experts: Experts | None = None
    latent: LatentAttention | None = None
    patch_size: PositiveCount | None = None
    channels: PositiveCount = 3
    token_types: Annotated[Count, Field(ge=0)] = 2
    source: str = ""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        """Fills the two fields that follow from others; with latent attention a head's key has two parts."""
        if isinstance(raw, dict):
            raw = dict(raw)
            if raw.get("kv_heads") is None and "heads" in raw:
                raw["kv_heads"] = raw["heads"]
            if raw.get("head_dim") is None and isinstance(raw.get("latent"), dict | LatentAttention):
                parts = [_part(raw["latent"], key) for key in ("nope_dim", "rope_dim")]
                raw["head_dim"] = sum(parts) if all(isinstance(part, int) for part in parts) else None
            heads, hidden = raw.get("heads"), raw.get("hidden")
            if raw.get("head_dim") is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
                if hidden % heads:
                    raise ValueError(
                        f"hidden {hidden} is not a multiple of heads {heads}; set head_dim, or change one of them"
                    )
                raw["head_dim"] = hidden // heads
        return raw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError("rope_scaling needs positions: rope")
        if self.kind != "decoder":
            for key in ("experts", "latent", "sliding_window"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} needs kind: decoder, not {self.kind}")
        if self.latent is not None and (self.bias != "none" or self.qk_norm or self.attention_sinks):
            raise ValueError("latent attention goes with bias: none, and without qk_norm and attention_sinks")
        if self.full_attention_every is not None and self.sliding_window is None:
            raise ValueError("full_attention_every needs sliding_window: without a window every layer attends to all")
        if (self.kind == "vit") != (self.patch_size is not None):
            raise ValueError("kind: vit and patch_size go together: a vision transformer reads patches, no other does")
        if self.experts is not None and self.experts.dense_layers > self.layers:
            raise ValueError(f"experts.dense_layers {self.experts.dense_layers} exceeds layers {self.layers}")
        return self

    def window(self, layer: int) -> int | None:
        """Latest tokens that a token attends to in a layer, counted from 0; None = all of them."""
        every = self.full_attention_every
        return None if every is not None and (layer + 1) % every == 0 else self.sliding_window


def _part(latent: dict[str, Any] | LatentAttention, key: str) -> Any:
    return latent.get(key) if isinstance(latent, dict) else getattr(latent, key)


class Tokenizer(Noun):
    """How text becomes token ids.

    `bytes` has 256 ids and one end-of-document id; `chars` takes one id a distinct character of the corpus;
    `bpe` trains a byte-level BPE of `vocab_size` on the corpus; `hf` reads `path`, a folder with tokenizer.json.
    """

    kind: Literal["bytes", "chars", "bpe", "hf"] = "bytes"
    vocab_size: PositiveCount = 4096
    path: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "hf" and not self.path:
            raise ValueError("tokenizer kind 'hf' needs path: a folder or file with tokenizer.json")
        return self


class Data(Noun):
    """What is trained on.

    Attributes:
        path: `python-stdlib` (the source text of the Python standard library on this machine), a file or folder of
            text, JSONL or Parquet, a folder of token shards, or a name or path for the `datasets` library.
        format: `auto` goes by the ending.
        text_field: the field that holds the text in JSONL, Parquet and datasets.
        validation_fraction: the last share of the token stream, never trained on.
        packing: `stream` joins documents and cuts windows anywhere; `documents` starts each sample at a document and
            masks the padding, so samples hold unequal numbers of target tokens.
        unique_tokens: how many there are before they repeat; none = enough. The loss law counts repeated ones less.
    """

    path: str = "python-stdlib"
    format: Literal["auto", "text", "jsonl", "parquet", "shards", "dataset"] = "auto"
    text_field: str = "text"
    tokenizer: Tokenizer = Tokenizer()
    validation_fraction: Annotated[Ratio, Field(gt=0, lt=1)] = 0.1
    packing: Literal["stream", "documents"] = "stream"
    unique_tokens: Annotated[Tokens, Field(gt=0)] | None = None


class Job(Noun):
    """What is wanted, whatever it runs on.

    Exactly one of `tokens` and `steps` says how long to train; with `target_loss` alone the planner derives tokens
    from a loss law, and training stops early once the validation loss reaches the target.

    `experiments` are development runs, as a share of this run's cost, that come on top: 0.5 for the OLMo 2 era
    (arXiv:2503.05804). A bill is of the run alone; the plan says what both come to.
    """

    name: str = "job"
    model: ModelShape
    data: Data = Data()
    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    steps: PositiveCount | None = None
    target_loss: Annotated[Number, Field(gt=0)] | None = None
    sequence_length: PositiveCount
    experiments: Annotated[Ratio, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1337

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tokens is not None and self.steps is not None:
            raise ValueError("give tokens or steps, not both: one follows from the other")
        if self.tokens is None and self.steps is None and self.target_loss is None:
            raise ValueError("say how long to train: tokens (e.g. 160B tokens), steps, or target_loss")
        if self.sequence_length > self.model.max_positions:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds the model's max_positions {self.model.max_positions}; "
                f"shorten one or raise the other"
            )
        return self
