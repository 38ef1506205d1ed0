"""`python -m penjing` is the command line."""

from penjing.cli import main

main()
