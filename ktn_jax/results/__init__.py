"""Results: people found, results files, and pictures of them."""
