"""What islands do about each other, where they do not all-reduce every step's gradients: built from a recipe.

Either gradients are averaged over islands in every step, encoded; or each island takes several steps by itself and then
all average how far their parameters have come (`compress.local`). A rank exchanges its split of everything with the
ranks that have its place in the other islands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thrifty.compress import Adaptive, Exchange, Feedback, Identity, LocalSteps, Outer, Overlap, codec_of
from thrifty.compress.adaptive import Decide
from thrifty.cost.adaptive import Decision, Unit, choose, said
from thrifty.cost.crossing import blocks_together, by_block
from thrifty.cost.traffic import hop
from thrifty.spec.plan import Plan
from thrifty.spec.recipe import Recipe
from thrifty.trainer.build import Built
from thrifty.trainer.clip import copies_of, local_of


class Islands:
    """The exchange of one rank with the other islands.

    Attributes:
        exchange: averages tensors over islands.
        local: where islands take steps by themselves: for what tensor ranks split, and for what they hold whole.
    """

    def __init__(
        self,
        built: Built,
        recipe: Recipe,
        decide: Decide = lambda _: None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """All ranks call it, with the same parameters on every island.

        Args:
            decide: which codec each unit takes, where the recipe leaves that to measured gradients.
            tell: takes what was decided, in words.

        Raises:
            ThriftyError: islands start from other parameters.
        """
        assert built.mesh is not None
        asked = recipe.exchange
        self._recipe = recipe
        self._island = built.mesh["island"].get_local_rank()
        feedback = None if asked.feedback == "none" else Feedback(asked.feedback, asked.decay, asked.residual)
        exchange = Exchange(
            codec_of(asked.codec) if asked.codec else Identity(),
            built.mesh.get_group("island"),
            feedback=feedback,
            warmup=asked.warmup_steps,
        )
        self._units = units(built.model, recipe)
        self.exchange: Exchange | Adaptive = exchange
        if asked.adaptive:
            self.exchange = Adaptive(exchange, decide, asked.warmup_steps, lambda made: tell(said(made)))
        else:
            _compile_kernels(exchange, self._units)
        self.local: list[LocalSteps] = []
        self._overlap = Overlap(self.exchange, self._units) if by_block(recipe.layout, asked.local_steps) else None
        if asked.local_steps > 1:
            outer = Outer("nesterov" if asked.outer_momentum else "sgd", asked.outer_lr, asked.outer_momentum)
            self.local = [
                LocalSteps(
                    unit.items(), exchange, every=asked.local_steps, outer=outer, fragments=asked.fragments,
                    delay=asked.delay_steps, alpha=asked.alpha,
                )
                for unit in self._units
            ]  # fmt: skip

    def expect_last(self) -> None:
        """Before the last backward pass of a step: gradients that it completes may cross at once."""
        if self._overlap is not None:
            self._overlap.arm()

    def average_gradients(self) -> None:
        """After the last backward pass: gradients become their means over islands. Nothing where steps are local."""
        if self._overlap is not None:
            self._overlap.wait()
        elif not self.local:
            for unit in self._units:
                self.exchange.start({name: p.grad for name, p in unit.items() if p.grad is not None})
            self.exchange.wait()

    def after_step(self) -> None:
        """After the optimizer's step: parameters meet where it is time."""
        for one in self.local:
            one.after_step()

    def finish(self) -> None:
        """At the end of training: all islands agree once more."""
        for one in self.local:
            one.finish()

    @contextmanager
    def common_weights(self) -> Iterator[None]:
        """The parameters that all islands have in common, for evaluation."""
        with ExitStack() as stack:
            for one in self.local:
                stack.enter_context(one.global_weights())
            yield

    # Checkpoints.

    def saved(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors of a checkpoint with what islands keep, and what goes into its progress.

        `model.*` are the parameters that all islands have in common, so that the checkpoint is one of any layout. What
        each island has for itself is under its number; what feeds errors back, under the rank's.

        Args:
            tensors: of model and optimizer, as this rank has them.
        """
        found, progress = dict(tensors), dict[str, Any](of=self._description())
        if isinstance(self.exchange, Adaptive):
            progress["adaptive"] = self.exchange.settings
        states = [one.state_dict() for one in self.local]  # waits for what is under way, which feeds errors back
        found |= {f"exchange.{dist.get_rank()}.{key}": value for key, value in self.exchange.state_dict().items()}
        if not self.local:
            return found, progress
        for name in tensors:
            if name.startswith("model.") or self._island:
                found[f"island{self._island}.{name}"] = found.pop(name)
        for state in states:
            found |= {f"model.{name}": value for name, value in state["anchor"].items()}
            found |= {f"outer.{name}": value for name, value in state["momentum"].items()}
            for waiting in state["waiting"]:
                found |= {f"waiting.{waiting['part']}.{name}": value for name, value in waiting["mean"].items()}
            progress["local"] = {"step": state["step"], "synchronised": state["synchronised"]}
            progress["local"]["waiting"] = [{key: one[key] for key in ("part", "due")} for one in state["waiting"]]
        return found, progress

    def load(
        self, tensors: dict[str, Tensor], progress: dict[str, Any], stored: Mapping[str, Tensor],
        read: Callable[[dict[str, Tensor]], None],
    ) -> str | None:  # fmt: skip
        """Takes over a checkpoint, also of other islands or none.

        Args:
            tensors: of model and optimizer, to be filled.
            progress: what `saved` gave; empty of a run without islands.
            stored: every tensor in the checkpoint, as one without memory.
            read: fills tensors by their names.

        Returns:
            What starts anew, in words; None where all goes on.
        """
        wanted: dict[str, Tensor] = {}
        for name, value in tensors.items():
            own = f"island{self._island}.{name}"
            if own in stored:
                wanted[own] = value
            elif not (self.local and name.startswith("model.")):
                wanted[name] = value
        states, anew = self._local_states(progress, stored, wanted)
        known = progress.get("of") == self._description()
        prefix = f"exchange.{dist.get_rank()}."
        kept = {key.removeprefix(prefix): torch.empty_like(value, device="cpu") for key, value in stored.items()
                if known and key.startswith(prefix)}  # fmt: skip
        read(wanted | {prefix + key: value for key, value in kept.items()})
        for one, state in zip(self.local, states, strict=True):
            one.load_state_dict(state)
        if self.local and f"island{self._island}.{next(iter(tensors))}" not in stored:
            anew.append("islands start from the parameters that all had in common")
            self.settle()
        if not known:
            reset = self.exchange.reset()
            if self._recipe.exchange.codec is not None:  # without one there are no errors to speak of
                anew.append(reset)
        elif isinstance(self.exchange, Adaptive):
            self.exchange.load(progress["adaptive"], kept, [list(unit) for unit in self._units])
        else:
            self.exchange.load_state_dict(kept)
        return "; ".join(dict.fromkeys(anew)) or None

    def _local_states(
        self, progress: dict[str, Any], stored: Mapping[str, Tensor], wanted: dict[str, Tensor]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """States of the local steps, whose tensors are added to those wanted; and what starts anew, in words."""
        anew: list[str] = []
        states = [one.state_dict() for one in self.local]
        local = progress.get("local", {"step": 0, "synchronised": [0] * self._recipe.exchange.fragments, "waiting": []})
        for one, state in zip(self.local, states, strict=True):
            wanted |= {f"model.{name}": value for name, value in state["anchor"].items()}
            outer = {f"outer.{name}": value for name, value in state["momentum"].items()}
            if outer.keys() <= stored.keys():
                wanted |= outer
            else:
                anew.append("outer momentum starts from zero")
            state |= {key: local[key] for key in ("step", "synchronised")}
            state["waiting"] = [
                waiting | {"mean": {name: state["anchor"][name].clone() for name in one.fragments[waiting["part"]]}}
                for waiting in local["waiting"]
            ]
            for waiting in state["waiting"]:
                wanted |= {f"waiting.{waiting['part']}.{name}": value for name, value in waiting["mean"].items()}
        return states, anew

    def settle(self) -> None:
        """Puts the parameters that all islands have in common into the model for good."""
        for one in self.local:
            one.settle()

    def kept_bytes(self) -> int:
        """Memory that this rank keeps between exchanges."""
        return self.exchange.kept_bytes + sum(one.kept_bytes for one in self.local)

    def _description(self) -> dict[str, Any]:
        """What the state of an exchange is good for."""
        return {"layout": self._recipe.layout.model_dump(), "exchange": self._recipe.exchange.model_dump()}


def _compile_kernels(exchange: Exchange, units: Sequence[Mapping[str, nn.Parameter]]) -> None:
    """Of the codec, for sizes as they will come: the first step would wait for it."""
    if exchange.route not in ("all_gather", "all_to_all"):
        return
    parts = exchange.ranks if exchange.route == "all_to_all" else 1
    for size in {sum(local_of(p).numel() for p in unit.values()) // parts for unit in units}:
        like = torch.randn(size)
        exchange.codec.decode(exchange.codec.encode(like), like)


def units(model: nn.Module, recipe: Recipe) -> list[dict[str, nn.Parameter]]:
    """Parameters that cross islands together, by name; the same as `cost.crossing.exchanged` prices.

    In the order in which the backward pass completes their gradients: the embedding's unit comes last.
    """
    found: dict[str, dict[str, nn.Parameter]] = {}
    if not by_block(recipe.layout, recipe.exchange.local_steps):
        for name, parameter in model.named_parameters():
            found.setdefault("whole" if copies_of(parameter) > 1 else "split", {})[name] = parameter
        return [found[unit] for unit in ("split", "whole") if unit in found]
    for name, parameter in reversed(list(model.named_parameters())):
        found.setdefault(".".join(name.split(".")[:2]) if name.startswith("blocks.") else "root", {})[name] = parameter
    root = found.pop("root")
    blocks = list(found.values())  # the last one first
    values = sum(parameter.numel() for parameter in blocks[0].values())
    together = blocks_together(values, recipe.layout.shard * recipe.layout.context)
    whole = len(blocks) - len(blocks) % together
    groups = [blocks[first : first + together] for first in range(0, whole, together)]
    return [*({n: p for one in group for n, p in one.items()} for group in groups),
            {n: p for one in [*blocks[whole:], root] for n, p in one.items()}]  # fmt: skip


def best_codecs(plan: Plan, found: Sequence[Unit]) -> Decision | None:
    """The codec of each unit on the plan's link between islands, beside the computation that it predicts."""
    layout, bill = plan.recipe.layout, plan.predicted
    link = hop(plan.cluster, layout, "island")
    return choose(
        found,
        link_bytes_per_s=link.bandwidth,
        compute_seconds=bill.seconds_by_part["compute"].value / bill.steps.value,
        ranks=layout.island,
    )
