"""`python -m manihot`, and what torchrun starts: `torchrun ... -m manihot train`."""

from manihot.cli import main

if __name__ == "__main__":
    main()
