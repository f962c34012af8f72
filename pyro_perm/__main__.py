"""``python -m pyro_perm``: the demo."""

import sys


def run() -> None:
    """Run the demo, or say what it needs."""
    try:
        from pyro_perm.demo.command_line import main
    except ModuleNotFoundError as error:
        if error.name not in {"matplotlib", "sklearn"}:
            raise
        sys.exit(f"The demo needs {error.name}: python -m pip install 'pyro_perm[demo]'")
    main()


if __name__ == "__main__":
    run()
