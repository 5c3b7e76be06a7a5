"""`python -m kilopix.cli`."""

from kilopix.cli import main

main()
