"""`thrifty generate`: lets a trained model continue a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    prompt: Annotated[str, typer.Option(help="What the model continues.")] = "\n",
    tokens: Annotated[int, typer.Option(min=1, help="New tokens at most.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 from all.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Continue a prompt with the model that a run trained."""
    import time

    from thrifty.cli.common import need_torch, print_json
    from thrifty.spec.errors import ThriftyError

    need_torch("generating")
    from thrifty.infer.generate import generate
    from thrifty.trainer.trained import load_trained

    model, tokenizer, step = load_trained(run, lambda text: typer.echo(text, err=True))
    ids = [int(i) for i in tokenizer.encode(prompt)]
    if not ids:
        raise ThriftyError("the prompt is empty", where="--prompt", hint="give at least one character")
    begin, new, shown = time.perf_counter(), [], prompt
    if not json:
        typer.echo(prompt, nl=False)
    for token in generate(
        model, ids, tokens, temperature=temperature, top_k=top_k or None, seed=seed, end_id=tokenizer.end_id
    ):
        new.append(int(token))
        if not json:
            text = tokenizer.decode([*ids, *new])
            # A token may end inside a character; what is not whole yet waits for the next one.
            if not text.endswith("\ufffd") and text.startswith(shown):
                typer.echo(text[len(shown) :], nl=False)
                shown = text
    seconds = time.perf_counter() - begin
    if json:
        rate = len(new) / seconds
        print_json(
            {
                "step": step,
                "prompt": prompt,
                "text": tokenizer.decode(new),
                "tokens": len(new),
                "tokens_per_second": rate,
            }
        )
    else:
        typer.echo(f"\n\n[{len(new)} tokens in {seconds:.2f} s, checkpoint of step {step}]", err=True)
