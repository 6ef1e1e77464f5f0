"""`python -m mrr.train` is `mrr train`."""

from mrr.train.cli import train

if __name__ == "__main__":
    train()
