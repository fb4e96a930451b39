"""The near side of an engine: hands the attempts of a pool to processes, and gets their ends back."""
