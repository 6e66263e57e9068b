"""`thrifty`: wires the verbs together and turns mistakes into one message and exit code 2."""

from __future__ import annotations

import sys

import typer

from thrifty.cli import (
    calibrate,
    compare,
    config,
    doctor,
    emit,
    export,
    fit_law,
    generate,
    islands,
    plan,
    report,
    serve,
    train,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prices a training run before it is paid for, runs the cheapest plan, and bills it afterwards.",
)
app.command("plan")(plan.command)
app.command("emit")(emit.command)
app.command("train")(train.command)
app.command("serve")(serve.command)
app.command("islands")(islands.command)
app.command("report")(report.command)
app.command("compare")(compare.command)
app.command("generate")(generate.command)
app.command("export")(export.command)
app.command("fit-law")(fit_law.command)
app.command("calibrate")(calibrate.command)
app.command("doctor")(doctor.command)
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        from thrifty import __version__

        typer.echo(f"thrifty {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the command line."""
    try:
        app()
    except Exception as error:
        from thrifty.spec.errors import ThriftyError

        if not isinstance(error, ThriftyError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
