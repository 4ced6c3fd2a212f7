"""`python -m manihot.cli`."""

from manihot.cli import main

if __name__ == "__main__":
    main()
