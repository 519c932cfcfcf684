"""An empty FastAPI application on uvicorn, to measure the framework's own start and idle memory.

`python -m bench.framework PORT`.
"""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/health/ready")
async def tell_ready() -> dict[str, str]:
    """Return that the server is ready."""
    return {"status": "ready"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
