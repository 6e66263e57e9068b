"""`python -m thrifty` is the command line, also under `torchrun -m thrifty`."""

from thrifty.cli.main import main

main()
