"""Searches over schedules, optimisers and clusters with Ray Tune; training cost (voxels) is their clock."""
