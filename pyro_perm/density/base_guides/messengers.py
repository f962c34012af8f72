"""Guides that are effect handlers, around the model."""

from pyro.infer.autoguide import AutoMessenger
from pyro.poutine.messenger import Messenger

from pyro_perm.density.base_guides.reader import Refusal

MESSENGERS = Refusal(
    (AutoMessenger, Messenger),
    "a guide that is an effect handler draws each site where the model asks for it, so the "
    "likelihood would cancel from the objective; use AutoNormal",
)
