"""HTTP client for providers."""
