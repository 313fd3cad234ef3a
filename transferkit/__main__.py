"""``python -m transferkit``."""

from transferkit.cli.dispatch import main

if __name__ == "__main__":
    main()
