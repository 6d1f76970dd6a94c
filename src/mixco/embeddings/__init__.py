"""A collection of images as an encoder sees it: vectors, neighbours, duplicates."""
