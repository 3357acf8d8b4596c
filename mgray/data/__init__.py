"""Video data: annotations, shards, clips, decoding, and the feed."""
