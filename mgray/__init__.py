"""mgray: multigrid training of video models on Ray."""
