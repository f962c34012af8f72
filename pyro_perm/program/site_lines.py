"""Where in the user's model the sample statements are."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_perm.program.source_lines import source_line


class SiteLines(Messenger):
    """Notes the source line of every sample statement.

    Attributes:
        of_site: site -> ``file.py:line``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_site: dict[str, str | None] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.of_site[msg["name"]] = source_line()
