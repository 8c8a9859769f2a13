"""`python -m chainctl` is the command itself."""

from chainctl.cli.main import main

main(prog_name="chainctl")
