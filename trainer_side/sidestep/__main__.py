"""`python -m sidestep`: the command line."""

from sidestep.cli import main

if __name__ == "__main__":
    main()
