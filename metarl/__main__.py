"""`python -m metarl`: the command line where the `metarl` script is not on the PATH."""

from metarl.cli import main

if __name__ == "__main__":
    main()
