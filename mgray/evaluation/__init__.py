"""Evaluation of a checkpoint on a validation split, and its predictions of single videos."""
