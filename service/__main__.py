"""`python -m service` is `gridloop`."""

from service.cli import main

if __name__ == "__main__":
    main()
