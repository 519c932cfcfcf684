"""Storage of turns: transaction scripts and their prepared statements."""
