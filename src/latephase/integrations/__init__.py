"""The optimizers inside other packages' training loops; each module is imported by name, none by `latephase`."""
