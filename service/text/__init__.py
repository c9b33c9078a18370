"""Words: how typed text is cut into tokens, and what a model knows of them."""
