"""What is raised where a check fails."""


class SymmetryVerificationError(ValueError):
    """A group changes what it must leave alone in the model's log joint: the spec is wrong."""
