"""`/docs` and `/redoc`, from our own files: they work without a network."""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_ASSETS = Path(__file__).parent.parent / "assets"
# An empty image, so that neither page loads an icon from another host.
_NO_ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"


def mount_assets(app: FastAPI) -> None:
    """Serve the scripts and styles of the pages at `/assets`."""
    app.mount("/assets", StaticFiles(directory=_ASSETS), name="assets")


@router.get("/docs")
async def swagger_ui(request: Request) -> HTMLResponse:
    """Show Swagger UI."""
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{root}/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/assets/swagger-ui.css",
        swagger_favicon_url=_NO_ICON,
    )


@router.get("/redoc")
async def redoc(request: Request) -> HTMLResponse:
    """Show ReDoc."""
    root = request.scope.get("root_path", "")
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        redoc_js_url=f"{root}/assets/redoc.standalone.js",
        redoc_favicon_url=_NO_ICON,
        with_google_fonts=False,
    )
