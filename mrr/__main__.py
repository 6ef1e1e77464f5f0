"""`python -m mrr`."""

from mrr.cli import main

if __name__ == "__main__":
    main()
