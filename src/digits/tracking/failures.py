"""The two ways in which telling MLflow something can fail."""


class Refused(Exception):
    """The store answers and says no: trying again as it is can't help."""


class Unreachable(Exception):
    """The store can't be reached or is not well: try again later."""
