"""The late-phase study: what each strategy achieves from the same checkpoint in the same wall-clock time."""
