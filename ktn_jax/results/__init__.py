"""What was found: people, the files that hold them, and pictures of them."""
