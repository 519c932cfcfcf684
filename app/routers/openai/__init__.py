"""`/v1`: what OpenAI's clients speak, over the same turns; see docs/openai.md."""
