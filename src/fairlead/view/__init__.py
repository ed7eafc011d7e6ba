"""What a router may know: the view, and the features computed from it."""
