"""Opens what a run has trained: the model of its newest good checkpoint, and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from thrifty.data.tokenizer import Tokenizer, load_tokenizer
from thrifty.model.transformer import Transformer
from thrifty.planner.emit import read_plan
from thrifty.spec.errors import ThriftyError
from thrifty.trainer.checkpoint import Checkpoints
from thrifty.trainer.run_folder import RunFolder
from thrifty.trainer.world import World


def load_trained(root: Path, notify: Callable[[str], None]) -> tuple[Transformer, Tokenizer, int]:
    """Model in fp32 on the CPU, tokenizer, and the step of the checkpoint.

    Args:
        root: a run folder; the layout that trained it does not matter.
        notify: told of damaged checkpoints that are passed over.

    Raises:
        ThriftyError: not a run folder, or no checkpoint in it is good.
    """
    folder = RunFolder(root)
    if not folder.plan.exists():
        raise ThriftyError(
            "is not a run folder (no plan.yaml)", where=str(root), hint="give what `thrifty train` wrote"
        )
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    checkpoints = Checkpoints(folder.checkpoints, alone, keep=1)
    found = checkpoints.latest(notify)
    if found is None:
        raise ThriftyError("has no checkpoint yet", where=str(root), hint="train on: thrifty train RUN --resume")
    with torch.device("meta"):
        model = Transformer(read_plan(folder.plan).job.model)
    model.to_empty(device="cpu")
    checkpoints.load(found[0], {f"model.{name}": p.detach() for name, p in model.named_parameters()})
    return model.eval(), load_tokenizer(folder.tokenizer), found[0]
