"""`python -m gridloop` is the command `gridloop`."""

from service.cli import main

main()
