"""What an encoder makes of a collection of images: vectors, neighbours, duplicates."""
