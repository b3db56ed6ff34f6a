"""``python -m scripts <command>``."""

from scripts.lab.cli import main

if __name__ == "__main__":
    main()
