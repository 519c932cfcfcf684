"""The pure parts of the voice cascade."""
