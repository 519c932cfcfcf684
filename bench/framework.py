"""FastAPI and uvicorn with nothing in them: what the framework alone costs at start and at rest.

`python -m bench.framework PORT`.
"""

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/health/ready")
async def tell_ready() -> dict[str, str]:
    """Answer."""
    return {"status": "ready"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
