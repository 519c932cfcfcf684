"""Build the model's prompt: persona, history and played text."""
