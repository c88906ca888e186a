"""A user's module that cannot be imported."""

raise RuntimeError("the user's module is broken")
