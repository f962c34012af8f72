"""What the package says of itself where it is not read in its repository.

The README's links are relative. A package index wants them absolute, and the repository's address
beside them; both are known where the package is built: on GitHub, from the environment of a job.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown whose links into the repository lead there from everywhere.

    :param repository: its address, or empty: then the text stays as it is.
    """

    def link(match: re.Match[str]) -> str:
        mark, label, path = match.groups()
        kind = "raw" if mark else "blob"
        return f"{mark}[{absolute(label, repository)}]({repository}/{kind}/HEAD/{path})"

    return _LINK.sub(link, text) if repository else text


class CustomMetadataHook(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the metadata of ``pyproject.toml``."""
        server, name = (os.environ.get(f"GITHUB_{key}", "") for key in ("SERVER_URL", "REPOSITORY"))
        repository = f"{server}/{name}" if server and name else ""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Documentation": f"{repository}/blob/HEAD/docs/index.md",
                "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
