"""A run made, kept in a folder, shown while it goes on, and resumed to the same bits."""
