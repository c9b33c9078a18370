"""How sure an answer is: scores, and the constants behind promises about them, fitted on held-out data."""
