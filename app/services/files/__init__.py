"""Images and documents that messages use: what they are, their text, and where their bytes are.

`job.py` is the only part that parses documents, and it runs in a worker process of
`services.sandbox`, never in the server. Of images the server reads the header alone.
"""
