"""`python -m sbiflow` is `sbiflow`: what `torchrun -m` needs."""

from sbiflow.cli import app

if __name__ == "__main__":
    app(prog_name="sbiflow")
