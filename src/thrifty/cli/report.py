"""`thrifty report RUN`: predicted against measured, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thrifty.cli.common import Json


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, as written by `thrifty train`.", show_default=False)
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Where the page goes.  [default: RUN/report.html]", show_default=False
        ),
    ] = None,
    no_html: Annotated[bool, typer.Option("--no-html", help="Print only; write no page.")] = False,
    json: Json = False,
) -> None:
    """Print predicted against measured for every term of a run's bill, and write one HTML page of it."""
    from thrifty.cli.common import print_json
    from thrifty.report import output, terminal
    from thrifty.report.ledger import read_ledger
    from thrifty.report.timeline import timeline_text
    from thrifty.spec.errors import ThriftyError

    if html is not None and no_html:
        raise ThriftyError(
            "--html and --no-html contradict each other", where="thrifty report", hint="give one of them"
        )
    ledger = read_ledger(run)
    page, missing = (None, "") if no_html else output.report_html(ledger, html)
    if json:
        print_json(output.report_json(ledger) | {"page": str(page) if page else None})
        return
    out = terminal.console()
    terminal.print_report(out, ledger)
    terminal.print_timeline(out, timeline_text(ledger.plan, ledger.root))
    terminal.print_page(out, page, missing)
