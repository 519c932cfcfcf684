"""Streams of user interfaces: the AI SDK's and AG-UI's, over stored turns; see docs/ui.md."""
