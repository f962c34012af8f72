"""``python -m pyro_perm``: the demo."""

from pyro_perm.demo.command_line import main

if __name__ == "__main__":
    main()
