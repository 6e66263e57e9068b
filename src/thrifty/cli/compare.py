"""`thrifty compare A B`: what each run spent to reach the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Run folder that sets the measure.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Run folder that is held against it.", show_default=False)],
    target_loss: Annotated[
        float | None,
        typer.Option(
            "--target-loss",
            metavar="X",
            help="Validation loss in nats per token.  [default: the worse of the two final ones]",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the comparison as one HTML page.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Compare what two runs spent to reach the same validation loss: tokens, time, money, energy and FLOPs."""
    import math

    from thrifty.cli.common import print_json
    from thrifty.report import output, terminal
    from thrifty.report.compare import compare_runs
    from thrifty.report.ledger import read_ledger
    from thrifty.spec.errors import ThriftyError

    if target_loss is not None and not (math.isfinite(target_loss) and target_loss > 0):
        raise ThriftyError(
            f"wants a loss above 0, got {target_loss}",
            where="--target-loss",
            hint="in nats per token, for example  --target-loss 1.9",
        )
    comparison = compare_runs(read_ledger(a), read_ledger(b), target_loss)
    page = output.comparison_html(comparison, html) if html is not None else None
    if json:
        print_json(output.comparison_json(comparison) | {"page": str(page) if page else None})
        return
    out = terminal.console()
    terminal.print_comparison(out, comparison)
    terminal.print_page(out, page, "")
