"""Video models and the batch norm that multigrid training needs."""
