"""Playing episodes: environments, collection, evaluation, demonstrations."""
