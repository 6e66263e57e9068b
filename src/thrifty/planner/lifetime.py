"""What a model costs over its life: training it to a loss, and serving so many tokens of it.

A smaller model reaches the same loss on more tokens and is cheaper to serve for ever after (Sardana et al. 2023,
arXiv:2401.00448). Each size N gets the tokens D that the loss law asks for, and

    $ = model FLOPs a token x D / (peak x MFU x goodput) x price  +  served tokens x $ of one

is least at some size between the law's compute optimum and its floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.cost.flops import model_flops_per_token
from thrifty.cost.params import total_parameters
from thrifty.cost.serving import Served, Traffic
from thrifty.laws import loss as law
from thrifty.planner.deploy import Formats, deploy
from thrifty.planner.family import family
from thrifty.spec.cluster import Cluster
from thrifty.spec.errors import ThriftyError
from thrifty.spec.figure import Figure, modelled
from thrifty.spec.job import ModelShape

# Llama 3 405B trained at 38 to 43% (arXiv:2407.21783, table 4).
USUAL_MFU = 0.4
# Sardana et al. trained to this many tokens for a parameter; beyond, nobody has checked the law.
MOST_TOKENS_PER_PARAMETER = 10_000
TRAINED_LENGTH = 8192  # tokens of a training sequence, for the attention's share of the FLOPs


@dataclass(frozen=True)
class Life:
    """One model over its life.

    Attributes:
        tokens: that it is trained on.
        loss: that the law expects then, in nats a token.
        served: figures of its deployment on the serving cluster.
    """

    shape: ModelShape
    parameters: int
    tokens: float
    loss: float
    training_usd: float
    serving_usd: float
    served: Served

    @property
    def usd(self) -> float:
        """Training and serving."""
        return self.training_usd + self.serving_usd

    def figures(self, spans: tuple[float, float]) -> dict[str, Figure]:
        """Dollars with provenance; `spans` are the factors of the interval of what serving costs."""
        low, high = (self.serving_usd * factor for factor in spans)
        formula = f"FLOPs over peak x MFU x goodput; MFU {USUAL_MFU:.0%} unless given"
        return {
            "training_usd": modelled(self.training_usd, "usd", formula),
            "serving_usd": modelled(self.serving_usd, "usd", "served tokens x $ a token", low=low, high=high),
            "usd": modelled(
                self.usd, "usd", "training + serving", low=self.training_usd + low, high=self.training_usd + high
            ),
        }


def training_usd(shape: ModelShape, tokens: float, cluster: Cluster, mfu: float = USUAL_MFU) -> float:
    """Dollars of device-hours to train on so many tokens; the number of devices does not matter.

    Raises:
        ThriftyError: the accelerator has no bf16 rate.
    """
    if "bf16" not in cluster.accelerator.peak_flops:
        raise ThriftyError(f"{cluster.accelerator.name} has no bf16 rate to train at", where="--on")
    flops = model_flops_per_token(shape, min(shape.max_positions, TRAINED_LENGTH)) * tokens
    rate = cluster.accelerator.peak_flops["bf16"].value * mfu * cluster.goodput.value
    return flops / rate / 3600 * cluster.price.value


def life(
    shape: ModelShape,
    tokens: float,
    served_tokens: float,
    cluster: Cluster,
    traffic: Traffic,
    formats: Formats,
    mfu: float = USUAL_MFU,
) -> Life:
    """Prices one model that is trained on `tokens` and then makes `served_tokens` of output.

    Raises:
        ThriftyError: it cannot be served on the cluster.
    """
    _, served = deploy(shape, cluster, traffic, formats)
    count = total_parameters(shape)
    return Life(
        shape=shape,
        parameters=count,
        tokens=tokens,
        loss=law.loss(count, tokens),
        training_usd=training_usd(shape, tokens, cluster, mfu),
        serving_usd=served.usd_per_million / 1e6 * served_tokens,
        served=served,
    )


def cheapest_life(
    shape: ModelShape,
    target_loss: float,
    served_tokens: float,
    cluster: Cluster,
    traffic: Traffic,
    formats: Formats,
    mfu: float = USUAL_MFU,
) -> list[Life]:
    """The model and dense ones of every size (`planner.family`) that reach the loss, cheapest over their lives first.

    Raises:
        ThriftyError: a mixture of experts, which the loss law does not cover; no size reaches the loss, or none that
            does can be served on the cluster.
    """
    if shape.experts is not None:
        raise ThriftyError("the loss law is for dense models, not for mixtures of experts", where="--lifetime")
    found, reason = [], None
    others = (other for _, other in family(shape.vocab_size, shape.max_positions))
    for one in (shape, *others):
        count = total_parameters(one)
        try:
            tokens = law.tokens_for_loss(count, target_loss)
            if tokens <= MOST_TOKENS_PER_PARAMETER * count:
                found.append(life(one, tokens, served_tokens, cluster, traffic, formats, mfu))
        except ThriftyError as error:
            reason = error
    if not found:
        raise reason or ThriftyError(f"no size reaches loss {target_loss:g}", where="--lifetime")
    return sorted(found, key=lambda one: one.usd)
