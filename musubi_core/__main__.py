"""`python -m musubi_core`: the command line."""

from musubi_core.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
