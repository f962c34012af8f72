"""The demo behind ``python -m pyro_perm``; needs the extra ``pyro_perm[demo]``."""
