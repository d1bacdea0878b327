"""`python -m dollartune` is the command `dollartune`."""

from dollartune.cli import main

if __name__ == "__main__":
    main()
