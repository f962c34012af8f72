"""The README as the site's first page.

Its links are those of the repository: what the site has too is linked there, anything else in the
repository where that is known, as in a job on GitHub, and is plain text elsewhere.
"""

import os
import re

PLACE = "<!-- README -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def landing_page(page: str, readme: str) -> str:
    """A page with the README in its place."""
    server, name = (os.environ.get(f"GITHUB_{key}", "") for key in ("SERVER_URL", "REPOSITORY"))
    repository = f"{server}/{name}" if server and name else ""

    def link(match: re.Match[str]) -> str:
        mark, label, path = match.groups()
        if path.startswith(("docs/", "tutorials/")):
            return f"{mark}[{label}]({path.removeprefix('docs/')})"
        return f"[{label}]({repository}/blob/HEAD/{path})" if repository else label

    return page.replace(PLACE, _LINK.sub(link, readme))
