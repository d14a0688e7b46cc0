"""A body of our own, made from nothing: skeleton, skin, charts, shapes and poses."""
