"""Adapter for requests to addresses that users choose: aiohttp behind a guard of addresses."""
