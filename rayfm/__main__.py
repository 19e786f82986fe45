"""``python -m rayfm`` is the command ``rayfm``."""

from rayfm.cli import main

if __name__ == "__main__":
    main()
