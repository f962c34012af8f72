"""Links that open the tutorials in Colab, on a site that is built where the repository is known.

As for the links of the packaged README, that is on GitHub, from the environment of a job.
"""

import json
import os
from typing import Any


def add_colab_link(notebook: str, path: str) -> str:
    """A notebook with a link below its title, or as it is without a repository.

    :param notebook: its JSON.
    :param path: where it is in the repository.
    """
    repository = os.environ.get("GITHUB_REPOSITORY")
    if not repository:
        return notebook
    address = f"https://colab.research.google.com/github/{repository}/blob/HEAD/{path}"
    cell: dict[str, Any] = {
        "cell_type": "markdown",
        "id": "colab",
        "metadata": {},
        "source": f"[Open in Colab]({address}); there, run `%pip install pyro_perm[demo]` first.",
    }
    content = json.loads(notebook)
    content["cells"].insert(1, cell)
    return json.dumps(content, indent=1)
